"""A command that can be killed with all that it started, and faults of a disk around it.

The faults are made without privileges where the machine allows it.
"""

import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Fault = Literal["truncate", "flip", "read_only", "disk_full"]
_UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
_TICK_S = 0.005


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    killed: bool
    """By this program."""
    exit_code: int
    """Of the command, negative for a signal."""
    seconds: float
    """From its start to its end."""
    log: Path
    """Its output."""

    @property
    def last_lines(self) -> str:
        """Return the end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-800:].strip()


def run_killable(
    command: list[str],
    log: Path,
    *,
    kill_after_s: float | None = None,
    max_file_bytes: int | None = None,
    timeout_s: float = 3600.0,
) -> Outcome:
    """Run a command in a session of its own; kill the whole of it at a moment, if one is given.

    Args:
        command: program and arguments.
        log: receives stdout and stderr.
        kill_after_s: SIGKILL comes after so many seconds, unless the command has ended.
        max_file_bytes: larger files cannot be written (RLIMIT_FSIZE), as on a disk that is full.
        timeout_s: after so long it is killed, and counts as ended with an error.
    """

    def limit() -> None:
        if max_file_bytes is not None:
            # The signal would kill; ignored, a write fails with "File too large" instead.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # A pipe to the log's writer would not do: the limit is for the command's files only.
            stdout=output if max_file_bytes is None else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if max_file_bytes is None else subprocess.PIPE,
            start_new_session=True,
            preexec_fn=limit,
        )
    errors = b""
    end = started + (timeout_s if kill_after_s is None else kill_after_s)
    if max_file_bytes is not None:
        try:
            _, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            end = 0.0
        log.write_bytes(errors or b"")
    while process.poll() is None and time.monotonic() < end:
        time.sleep(_TICK_S)
    killed = process.poll() is None
    _kill_session(process)
    seconds = time.monotonic() - started
    return Outcome(killed and kill_after_s is not None, process.wait(), seconds, log)


def _kill_session(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the command's process group, and wait until nothing of it is."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            break
        process.poll()
        time.sleep(_TICK_S)
    process.wait()


def damage_file(path: Path, fault: Literal["truncate", "flip"], rng: random.Random) -> str:
    """Cut a file short or flip one bit of it; returns what was done."""
    content = bytearray(path.read_bytes())
    position = rng.randrange(len(content))
    if fault == "truncate":
        del content[position:]
        done = f"{path.name} cut to {position} bytes"
    else:
        content[position] ^= 1 << rng.randrange(8)
        done = f"{path.name}: a bit of byte {position} of {len(content)} flipped"
    path.write_bytes(content)
    return done


def has_namespaces() -> bool:
    """Say whether this user may mount file systems in a namespace of its own."""
    probe = "mount -t tmpfs -o size=64k none /tmp"
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_UNSHARE, "sh", "-c", probe], capture_output=True).returncode == 0


def run_on_full_disk(command: list[str], folder: Path, log: Path, num_bytes: int) -> Outcome:
    """Run a command whose folder lies on a disk of `num_bytes`.

    A tmpfs in a mount namespace of its own ("No space left on device"), where users may have one;
    elsewhere a limit on the size of each file ("File too large"). What the command left on the
    small disk is in `folder` afterwards.
    """
    if not has_namespaces():
        return run_killable(command, log, max_file_bytes=num_bytes)
    kept = folder.with_name(folder.name + "-on-small-disk")
    kept.mkdir(parents=True)
    folder.mkdir(parents=True, exist_ok=True)
    at, aside = shlex.quote(str(folder)), shlex.quote(str(kept))
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    blocks = max(64, (num_bytes + used) // 1024)
    script = (
        f"cp -a {at}/. {aside}/ && mount -t tmpfs -o size={blocks}k none {at} && "
        f"cp -a {aside}/. {at}/ && {{ {shlex.join(command)}; code=$?; rm -rf {aside}/* && "
        f"cp -a {at}/. {aside}/; exit $code; }}"
    )
    outcome = run_killable([*_UNSHARE, "sh", "-c", script], log)
    shutil.rmtree(folder)
    os.rename(kept, folder)
    return outcome


def run_in_read_only_folder(command: list[str], folder: Path, log: Path) -> Outcome:
    """Run a command whose folder cannot be written: mounted read-only, or by its permissions."""
    folder.mkdir(parents=True, exist_ok=True)
    if has_namespaces():
        at = shlex.quote(str(folder))
        script = f"mount --bind {at} {at} && mount -o remount,ro,bind {at} && "
        return run_killable([*_UNSHARE, "sh", "-c", f"{script}exec {shlex.join(command)}"], log)
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    try:
        return run_killable(command, log)
    finally:
        folder.chmod(mode)
