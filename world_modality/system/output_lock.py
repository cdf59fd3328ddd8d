"""One writer for an output: a lock that ends with the process that holds it, however it ends."""

import errno
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from world_modality.system.errors import InvalidInputError

WAIT_INTERVAL_S = 0.05


class OutputLock:
    """Refuses a second writer of a folder, in this process or in another one, naming the first.

        with OutputLock(log_dir, "--log_dir"): ...

    The kernel's lock on `<folder>/<name>`; a worker process that outlives its killed parent does
    not keep it. The file stays there, since only the lock on it counts.

    Args:
        folder: made if it is missing.
        what: what the folder is called on the command line, for the message.
        name: of the lock file; outputs in one folder that do not disturb each other have their own.
        wait_s: wait so long for the holder before refusing.
    """

    def __init__(
        self, folder: Path, what: str, *, name: str = ".lock", wait_s: float = 0.0
    ) -> None:
        self.path = folder / name
        self._what = what
        self._wait_s = wait_s
        self._held: FileLock | None = None

    @classmethod
    def of_file(cls, path: Path, what: str) -> "OutputLock":
        """Lock one file of a folder, through `<file>.lock` beside it."""
        return cls(path.parent, what, name=path.name + ".lock")

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            InvalidInputError: another holds it, the folder cannot be written, or its file system
                has no locks.
        """
        deadline = time.monotonic() + self._wait_s
        while not self._try():
            if time.monotonic() >= deadline:
                raise InvalidInputError(
                    f"{self._what}: {self.path.parent} is being written by {self._holder()}; one "
                    "output has one writer: wait until it ends, end it, or give another "
                    f"{self._what}"
                )
            time.sleep(WAIT_INTERVAL_S)

    def release(self) -> None:
        """Give the lock back; without effect where it is not held."""
        if self._held is not None:
            self._held.release()
            self._held = None

    def __enter__(self) -> "OutputLock":
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _try(self) -> bool:
        # A new object each time, since its holder may take the same one twice. A marker file, for
        # file systems without locks, would outlive a process that is killed.
        lock = FileLock(
            self.path, thread_local=False, fallback_to_soft=False, on_acquired=_write_holder
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not self.path.parent.exists():
                return False  # the last holder has removed the folder meanwhile
            raise self._unusable(error) from error
        self._held = lock
        return True

    def _holder(self) -> str:
        try:
            holder = self.path.read_text(encoding="utf-8", errors="replace").strip()[:200]
        except FileNotFoundError:
            holder = ""  # it has ended since, with its folder
        return "this very process" if holder == _this_process() else holder or "another process"

    def _unusable(self, error: OSError) -> InvalidInputError:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            return InvalidInputError(
                f"{self.path} cannot be locked ({error.strerror}): this file system has no locks, "
                f"so that two writers could not be told apart; give a {self._what} on a local disk"
            )
        return InvalidInputError(
            f"{self._what}: {self.path} cannot be written ({error.strerror}); give another "
            f"{self._what}, or mend the folder"
        )


def _write_holder(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{_this_process()}\n".encode(), 0)


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
