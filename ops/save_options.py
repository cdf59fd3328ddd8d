"""Flags that the subcommands of `ops.sync` which save have in common."""

from dataclasses import dataclass

from ops.errors import OpsError
from ops.sync_session import SessionOptions


@dataclass(frozen=True, kw_only=True)
class SaveOptions:
    """What `dir`, `file` and `run` have in common."""

    interval: float = 60.0
    """Seconds from one round to the next."""
    final_timeout: float = 300.0
    """Seconds that the last round may take, retries included."""
    call_timeout: float = 120.0
    """Seconds for one call of rclone, besides those for its bytes (at 64 KiB/s or more)."""
    keep_last: int | None = None
    """Remove all but the newest states from the remote; without it nothing is ever removed."""
    exclude: tuple[str, ...] = ()
    """Patterns of paths that do not travel, such as "*.mp4"."""
    bwlimit: str | None = None
    """The most that rclone may send, such as 4M (bytes a second)."""
    nice: int = 10
    """Added to the niceness of everything here, so that the command goes first."""
    quiet_s: float = 1.0
    """A round waits until the folder's files have not changed for this many seconds."""
    new_run: bool = False
    """Save beside another run that the remote holds."""
    quiet: bool = False
    """Print failures only."""

    def __post_init__(self) -> None:
        for name in ("interval", "final_timeout", "call_timeout"):
            if getattr(self, name) <= 0:
                raise OpsError(f"--{name} must be above 0, not {getattr(self, name)}")
        if self.keep_last is not None and self.keep_last < 1:
            raise OpsError(f"--keep_last must be at least 1, not {self.keep_last}")

    @property
    def session(self) -> SessionOptions:
        """Return what a session needs of these."""
        return SessionOptions(
            interval_s=self.interval,
            final_timeout_s=self.final_timeout,
            call_timeout_s=self.call_timeout,
            bwlimit=self.bwlimit,
            keep_last=self.keep_last,
            quiet=self.quiet,
            nice=self.nice,
        )
