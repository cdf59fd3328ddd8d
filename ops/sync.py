"""Keep a copy of a run on a remote (Google Drive, S3, a mounted disk), and bring it back.

    python -m ops.sync dir logs_c gdrive:runs/logs_c --interval 60
    python -m ops.sync file coc_outputs/labels.jsonl gdrive:runs/labels
    python -m ops.sync run --local logs_c --remote gdrive:runs/logs_c -- python train_model_c.py …
    python -m ops.sync restore gdrive:runs/logs_c logs_c
    python -m ops.sync states gdrive:runs/logs_c

Exit codes: 0 done, 1 an error that the message says how to mend, 2 a wrong command line, 130
interrupted. `run` has the exit code of its command.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

from tyro.conf import Positional, subcommand

from ops.store.atomic import FolderLock, private_folder
from ops.store.errors import OpsError, UsageError, run_cli
from ops.store.manifest import list_manifests, sum_of_sizes
from ops.store.rclone import (
    STATE_FOLDER,
    CallLimits,
    RcloneStore,
    RemoteName,
    ignored_variables,
    parse_remote,
)
from ops.store.restore import RestoreOptions, Restorer
from ops.store.session import SaveOptions, SyncSession, run_with_sync


@dataclass(frozen=True, kw_only=True)
class Dir(SaveOptions):
    """Save a folder at an interval until SIGTERM or SIGINT, and a last time then."""

    source: Positional[Path]
    """Folder or file to save."""
    remote: Positional[str]
    """Where it is saved, such as gdrive:runs/logs_c or :local:/mnt/disk/logs_c; give each run a
    folder of its own."""
    once: bool = False
    """Save once, then end."""


@dataclass(frozen=True, kw_only=True)
class File(Dir):
    """Save one file at an interval until SIGTERM or SIGINT, and a last time then."""


@dataclass(frozen=True, kw_only=True)
class Run(SaveOptions):
    """Run the command after `--`, save its folder beside it, and a last time when it ends."""

    local: Path
    """Folder that the command writes."""
    remote: str
    """Where it is saved, such as gdrive:runs/logs_c."""


@dataclass(frozen=True, kw_only=True)
class Restore(RestoreOptions):
    """Bring a folder back from a remote and verify each file."""

    remote: Positional[str]
    """Remote folder to restore, such as gdrive:runs/logs_c."""
    local: Positional[Path]
    """Folder that receives the files; other files that are there are never overwritten without
    --overwrite."""
    allow_empty: bool = False
    """Accept a remote that holds nothing yet, as at the first start of a run."""
    call_timeout: float = 120.0
    """Seconds for one call of rclone, besides those for its bytes."""


@dataclass(frozen=True, kw_only=True)
class States:
    """List the states that a remote holds, the newest first."""

    remote: Positional[str]
    """Remote folder whose states are listed."""
    call_timeout: float = 120.0
    """Seconds for the call of rclone."""


Command = (
    Annotated[Dir, subcommand("dir")]
    | Annotated[File, subcommand("file")]
    | Annotated[Run, subcommand("run")]
    | Annotated[Restore, subcommand("restore")]
    | Annotated[States, subcommand("states")]
)


def run(config: Command, command: list[str]) -> int:
    """Do what the subcommand says; returns the exit code.

    Raises:
        OpsError: an argument, a folder or the remote is not what is needed.
    """
    if isinstance(config, Run) != bool(command):
        raise UsageError("`run` needs the command to run after --; the other subcommands take none")
    remote = parse_remote(config.remote)
    if ignored := ignored_variables(os.environ):
        print(f"[sync] rclone runs without {', '.join(ignored)}", file=sys.stderr, flush=True)
    if isinstance(config, Run):
        return _run_command(config, remote, command)
    if isinstance(config, Dir):
        return _save(config, remote)
    store = RcloneStore(remote, CallLimits(config.call_timeout))
    if isinstance(config, Restore):
        return _restore(config, store)
    names = list_manifests(store)
    for name in names:
        print(f"state {name.number}, written by {name.writer}")
    print(f"{len(names)} states on {remote}")
    return 0


def _run_command(config: Run, remote: RemoteName, command: list[str]) -> int:
    config.local.mkdir(parents=True, exist_ok=True)
    state_dir = private_folder(config.local / STATE_FOLDER)
    with FolderLock(state_dir / "lock", str(config.local)):
        session = SyncSession(config.local, state_dir, remote, config)
        return run_with_sync(command, session, config.nice)


def _save(config: Dir, remote: RemoteName) -> int:
    folder, only = config.source, None
    if isinstance(config, File):
        folder, only = config.source.parent, config.source.name
        if config.source.is_dir():
            raise OpsError(f"{config.source} is a folder; use `dir`")
    elif not folder.is_dir():
        raise OpsError(f"there is no folder {folder}")
    state_dir = private_folder(folder / (STATE_FOLDER + (f"-{only}" if only else "")))
    with FolderLock(state_dir / "lock", str(config.source)):
        session = SyncSession(folder, state_dir, remote, config, only)
        stopped: list[int] = [0] if config.once else []

        def handle(number: int, frame: FrameType | None) -> None:
            if number in stopped:
                session.abort()
            stopped.append(number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, handle)
        if not session.drive(lambda: bool(stopped)):
            return 1
        return 130 if signal.SIGINT in stopped else 0


def _restore(config: Restore, store: RcloneStore) -> int:
    state_dir = private_folder(config.local / STATE_FOLDER)
    with FolderLock(state_dir / "lock", str(config.local)):
        manifest = Restorer(store, config.local, state_dir, config, _say).restore()
    if manifest is not None:
        _say(
            f"restored state {manifest.number} of {manifest.created}: {len(manifest.files)} files, "
            f"{sum_of_sizes(manifest.files) / 1e6:.1f} MB, verified"
        )
        return 0
    kept = config.keep_local and any(p.name != STATE_FOLDER for p in config.local.iterdir())
    if kept or config.allow_empty:
        if not kept:
            _say(f"{store.remote} holds nothing yet")
        return 0
    raise OpsError(
        f"{store.remote} holds no state; check its name with `rclone lsd`, or give --allow_empty "
        "if nothing was saved yet"
    )


def _say(message: str) -> None:
    print(f"[restore] {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the subcommand from the command line."""
    run_cli(Command, run)


if __name__ == "__main__":
    main()
