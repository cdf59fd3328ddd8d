"""A stand-in for the rclone binary that fails on purpose, with the real one behind it.

It is put first in PATH under the name `rclone`. A plan file beside it says what happens to the
next calls; without a line there, the call goes through. What it does with a fault:

- `fail`: ends with an error at once, as a remote that is down or misconfigured.
- `hang`: sleeps, as a remote that never answers.
- `cut`: lets the real rclone begin a copy at a low rate and kills it in the middle of a file.
- `torn`: as a backend without atomic uploads: a cut-off file is left under its final name.
- `late`: does the whole call and reports failure, as a connection lost before the answer.
- `full`: copies what is smaller than half of the largest file and fails, as a full remote.
"""

import os
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, get_args

RemoteFault = Literal["fail", "hang", "cut", "torn", "late", "full"]
FAULTS: tuple[RemoteFault, ...] = get_args(RemoteFault)
_HANG_S = 3600.0
_LOCAL = ":local:"


def install(folder: Path, rclone: Path) -> Path:
    """Write the stand-in into a folder, to be put first in PATH; returns its plan file."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "rclone"
    plan = folder / "plan"
    words = [sys.executable, "-S", Path(__file__).resolve(), rclone, plan]
    command = shlex.join(map(str, words))
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return plan


def next_fault(plan: Path) -> str:
    """Take the first line off the plan."""
    lines = plan.read_text(encoding="utf-8").splitlines() if plan.exists() else []
    if not lines:
        return ""  # nothing is written, since a plan may be on its way
    plan.write_text("".join(f"{line}\n" for line in lines[1:]), encoding="utf-8")
    return lines[0].strip()


def main(arguments: list[str]) -> int:
    """Do a call of rclone, or fail at it."""
    rclone, plan, *words = arguments
    fault = next_fault(Path(plan))
    if not fault:
        os.execv(rclone, [rclone, *words])
    copies = words[:1] == ["copy"]
    if fault == "hang":
        time.sleep(_HANG_S)
    if fault == "cut" and copies:
        return _cut([rclone, *words])
    if fault == "torn" and copies:
        _tear(words)
    if fault == "late":
        subprocess.run([rclone, *words], check=False)
    if fault == "full" and copies:
        largest = max((path.stat().st_size for path in _files(Path(words[1]))), default=0)
        subprocess.run([rclone, *words, "--max-size", f"{largest // 2}B"], check=False)
    print(f'{{"level":"error","msg":"injected fault: {fault}"}}', file=sys.stderr)
    return 5


def _cut(command: list[str]) -> int:
    process = subprocess.Popen([*command, "--bwlimit", "2k", "--inplace"])
    time.sleep(0.4)
    process.kill()
    process.wait()
    return 5


def _tear(words: list[str]) -> None:
    """Leave the first half of one file under its final name; what it replaces is moved first."""
    source, target = Path(words[1]), words[2]
    if not target.startswith(_LOCAL) or not source.is_dir():
        return
    replaced = Path(words[words.index("--backup-dir") + 1].removeprefix(_LOCAL))
    for file in _files(source)[:1]:
        place = Path(target.removeprefix(_LOCAL)) / file.relative_to(source)
        if place.exists():
            replaced.mkdir(parents=True, exist_ok=True)
            place.replace(replaced / place.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()
        place.write_bytes(content[: len(content) // 2])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
