"""The one writer of a file of labels: a kill costs at most the lines being written."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from coc_vla.labels.record import CocLabel, LabelScan, scan_labels
from world_modality.system.atomic import LineFile, replacing
from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock


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
        self._lines: LineFile | None = None
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
            self._opened().clear()

    def repair(self) -> LabelScan:
        """Take out what is no record, the torn last line of a kill above all.

        Returns:
            What the file held; its `damaged` lines are gone now.
        """
        if not self.path.exists():
            return LabelScan({}, (), 0, 0, ())
        scan = scan_labels(self.path)
        if all(line.is_torn for line in scan.damaged):
            self._opened().cut_torn_line()
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
        self._opened().append([label.to_json() for label in labels])

    def close(self) -> None:
        """Give the lock back."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
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

    def _opened(self) -> LineFile:
        if self._lines is None:
            self._lines = LineFile(self.path)
        return self._lines
