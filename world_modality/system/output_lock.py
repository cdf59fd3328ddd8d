"""One writer for an output: a lock that ends with the process that holds it, however it ends."""

import errno
import fcntl
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

from world_modality.system.errors import InvalidInputError

WAIT_INTERVAL_S = 0.05

# The kernel lets one process lock a file as often as it likes, and drops the lock when the process
# closes any descriptor of the file, so holders within the process are told apart here, before the
# file is opened again. Per process: a forked child gets a copy of this table but not of the lock.
_held: dict[Path, int] = {}
_held_guard = threading.Lock()


class OutputLock:
    """Refuses a second writer of a folder, in this process or in another one, naming the first.

        with OutputLock(log_dir, "--log_dir"): ...

    A POSIX record lock on `<folder>/<name>`. It is not inherited: with `flock`, a worker process
    that outlives its killed parent would keep the lock, and the run could not go on. The file
    stays there, since only the lock on it counts; nothing else may open it while it is held.

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
        self._descriptor: int | None = None

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
        if self._descriptor is None:
            return
        with _held_guard:
            os.close(self._descriptor)
            self._descriptor = None
            _held.pop(self._key, None)

    def __enter__(self) -> "OutputLock":
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def _key(self) -> Path:
        return self.path.parent.resolve() / self.path.name

    def _try(self) -> bool:
        with _held_guard:
            if _held.get(self._key) == os.getpid():
                return False
            descriptor = self._open()
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not self._is_in_place(descriptor):
                    os.close(descriptor)
                    return False
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _this_process().encode(), 0)
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
                raise self._unusable(error) from error
            self._descriptor = descriptor
            _held[self._key] = os.getpid()
            return True

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, flags, 0o666)
        except OSError as error:
            raise self._unusable(error) from error

    def _is_in_place(self, descriptor: int) -> bool:
        # The last holder may have removed the folder: a lock on its old file would keep nobody out.
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.lstat())
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        if _held.get(self._key) == os.getpid():
            return "this very process"
        try:
            holder = self.path.read_text(encoding="utf-8", errors="replace").strip()[:200]
        except FileNotFoundError:
            holder = ""  # it has ended since, with its folder
        return holder or "another process"

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


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"
