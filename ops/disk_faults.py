"""Faults of a disk, made without privileges where the machine allows it."""

import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from ops.killable import Outcome, run_killable

Fault = Literal["truncate", "flip", "read_only", "disk_full"]


def damage_file(path: Path, fault: Literal["truncate", "flip"], rng: random.Random) -> str:
    """Cut a file short or flip one bit of it; returns what was done."""
    content = bytearray(path.read_bytes())
    if not content:
        return f"{path.name} is empty, nothing was done"
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
    command = [*_UNSHARE, "sh", "-c", probe]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


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


_UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
