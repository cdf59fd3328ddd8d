"""The one writer of a file of labels: a kill costs at most the lines being written."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from coc_vla.labels import CocLabel, LabelScan, scan_labels
from world_modality.atomic import replacing, sync_file
from world_modality.errors import InvalidInputError
from world_modality.output_lock import OutputLock


class LabelFile:
    """An open file of labels, which no other process can open for writing.

    The lock is on `<file>.lock`. Lines are appended whole and are on the disk when `append`
    returns.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock; what the file holds stays as it is.

        Args:
            path: a `.jsonl` file; its folder is made.

        Raises:
            InvalidInputError: another process writes it, or the folder cannot be written.
        """
        self.path = path
        self._descriptor: int | None = None
        if path.is_dir():
            raise InvalidInputError(f"--output_jsonl {path} is a folder; name a file in it")
        self._lock = OutputLock.of_file(path, "--output_jsonl")
        self._lock.acquire()

    @property
    def has_lines(self) -> bool:
        """Whether an earlier run wrote something."""
        return self.path.exists() and self.path.stat().st_size > 0

    def empty(self) -> None:
        """Throw away what an earlier run wrote."""
        if self.path.exists():
            os.truncate(self.path, 0)
            sync_file(self.path)

    def repair(self) -> LabelScan:
        """Take out what is no record, the torn last line of a kill above all.

        Returns:
            What the file held; its `damaged` lines are gone now.
        """
        if not self.path.exists():
            return LabelScan({}, (), 0, 0, ())
        scan = scan_labels(self.path)
        if all(line.is_torn for line in scan.damaged):
            self._cut_torn_line()
            return scan
        damaged = {line.number for line in scan.damaged}
        with (
            self.path.open("rb") as old,
            replacing(self.path) as partial,
            partial.open("wb") as new,
        ):
            new.writelines(line for n, line in enumerate(old, 1) if n not in damaged)
        return scan

    def append(self, labels: Sequence[CocLabel]) -> None:
        """Write lines whole and flush them to the disk before returning.

        Labels that are finished at the same time share one flush, which costs milliseconds.

        Raises:
            OSError: the disk is full or gone; what was written of the lines is taken back where
                that is possible, and is repaired by the next run where not.
        """
        if self._descriptor is None:
            is_new = not self.path.exists()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._descriptor = os.open(self.path, flags, 0o666)
            if is_new:
                sync_file(self.path.parent)
        lines = b"".join(label.to_json().encode("ascii") + b"\n" for label in labels)
        before = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(lines):
                written += os.write(self._descriptor, lines[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            error.filename = str(self.path)
            raise

    def close(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._lock.release()

    def __enter__(self) -> "LabelFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _cut_torn_line(self) -> None:
        """Cut the file after its last line end."""
        with self.path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            keep = end
            while keep > 0:
                start = max(keep - 65_536, 0)
                file.seek(start)
                found = file.read(keep - start).rfind(b"\n")
                if found >= 0:
                    keep = start + found + 1
                    break
                keep = start
            if keep < end:
                file.truncate(keep)
                os.fsync(file.fileno())
