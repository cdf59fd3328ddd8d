"""Inject faults into a sync and check after each that nothing is lost.

    python -m ops.chaos_sync --out chaos_sync --faults 100

A folder is written as a training writes it (checkpoints under a temporary name and renamed, a log
that grows, `latest.json` replaced, old checkpoints removed) while `ops.sync` saves it on a folder
remote through the real rclone, with a stand-in in PATH that fails on purpose. After each fault a
fresh restore has to give a state that the writer once had, and every manifest that ever was on the
remote has to be there with all its objects. Faults: a remote that fails, hangs, is full, loses the
connection in the middle of a file, leaves a torn file or answers too late; SIGKILL of the sync
itself at a random moment.

Exit codes: 0 nothing was lost, 1 something was, 2 a wrong command line, 130 interrupted.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ops.atomic import private_folder, write_json
from ops.command_line import run_cli
from ops.errors import OpsError, UsageError
from ops.faulty_rclone import FAULTS, install
from ops.rclone_store import RcloneStore, rclone_folder
from ops.remote_name import parse_remote
from ops.remote_witness import Witness
from ops.restore import RestoreOptions, Restorer
from ops.training_folder import Writer, checksums

_KINDS = (*FAULTS, "kill")
_RETRY_S = "1"
_RECOVERIES = 0.6
# A round lists twice, then copies and checks objects, and copies and checks the manifest.
_CALLS = {"cut": (2, 4), "torn": (2, 4), "full": (2,)}


@dataclass(frozen=True)
class ChaosSyncConfig:
    """Inject faults into a sync and check after each that nothing is lost."""

    out: Path
    """Receives the folders and report.json; must not exist."""
    faults: int = 100
    """How many faults, of the kinds in turn."""
    seed: int = 0
    """Of the moments and of what is written."""
    checkpoint_kib: int = 64
    """Size of a checkpoint."""


class ChaosSync:
    """The folder, its sync and the faults.

    Args:
        config: all flags.
    """

    def __init__(self, config: ChaosSyncConfig) -> None:
        self._rng = random.Random(config.seed)
        self._out = config.out
        self._remote = config.out / "remote"
        self._plan = install(config.out / "bin", rclone_folder() / "rclone")
        self._environment = os.environ | {
            "PATH": f"{config.out / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }
        self.writer = Writer(config.out / "local", self._rng, config.checkpoint_kib * 1024)
        self.witness = Witness(self._remote)

    def inject(self, kind: str) -> list[str]:
        """Write, save under one fault, and return what is wrong afterwards."""
        self.writer.step()
        process = self._start()
        if kind == "kill":
            time.sleep(self._rng.uniform(0.05, 2.0))
        else:
            # Which call of the round is hit is left to chance, as far as it makes a difference.
            lines = [""] * self._rng.choice(_CALLS.get(kind, (0, 1, 2, 3, 4, 5))) + [kind]
            self._plan.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._wait_for_report(process, kind, "last_error")
        if kind != "kill" and self._rng.random() < _RECOVERIES:
            # Otherwise the machine dies before the sync has tried again.
            self._wait_for_report(process, kind, "saved_at")
        _kill(process)
        self._plan.write_text("", encoding="utf-8")
        return self.problems(kind)

    def problems(self, kind: str) -> list[str]:
        """Return what a fresh restore and the remote show to be wrong."""
        wrong = self.witness.losses()
        back = self._out / "restored"
        shutil.rmtree(back, ignore_errors=True)
        store = RcloneStore(parse_remote(self._name))
        state_dir = private_folder(back / ".sync")
        try:
            Restorer(store, back, state_dir, RestoreOptions(retries=0), _ignore).restore()
        except OpsError as error:
            return [*wrong, f"{kind}: restore failed: {error}"]
        restored = checksums(back)
        if restored and restored not in self.writer.states:
            wrong.append(f"{kind}: the restored state never was")
        if self.witness.num_manifests and not restored:
            wrong.append(f"{kind}: nothing was restored")
        return wrong

    def save_in_peace(self) -> list[str]:
        """Save without a fault; the newest state has to come back."""
        process = self._start("--once")
        process.wait()
        wrong = self.problems("peace")
        if checksums(self._out / "restored") != self.writer.states[-1]:
            wrong.append("the newest state did not come back")
        return wrong

    @property
    def _name(self) -> str:
        return f":local:{self._remote.absolute()}"

    def _start(self, *flags: str) -> "subprocess.Popen[bytes]":
        options = ["--interval", _RETRY_S, "--call_timeout", "4", "--quiet_s", "0.05"]
        options += ["--nice", "0", "--final_timeout", "120"]
        source = str(self.writer.folder)
        words = [sys.executable, "-m", "ops.sync", "dir", source, self._name, *options, *flags]
        with (self._out / "sync.log").open("ab") as log:
            return subprocess.Popen(
                words, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def _wait_for_report(self, process: "subprocess.Popen[bytes]", kind: str, field: str) -> None:
        """Wait until the sync reports a failure, or that it saved; the writer goes on meanwhile."""
        status = self.writer.folder / ".sync" / "status.json"
        if field == "last_error":
            status.unlink(missing_ok=True)
        until = time.monotonic() + (0 if kind == "kill" else 60)
        next_step = time.monotonic() + self._rng.uniform(0.1, 3.0)
        while time.monotonic() < until and process.poll() is None:
            found = json.loads(status.read_text(encoding="utf-8")) if status.exists() else {}
            if found.get(field) or found.get("saved_at"):
                return
            time.sleep(0.02)
            if time.monotonic() > next_step:
                self.writer.step()
                next_step = time.monotonic() + self._rng.uniform(0.1, 3.0)


def _ignore(message: str) -> None:
    """Say nothing: states that cannot be used are what a fault leaves behind."""


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(config: ChaosSyncConfig, command: list[str]) -> int:
    """Inject all faults; returns the exit code.

    Raises:
        OpsError: a command was given, or the folder exists.
    """
    if command:
        raise UsageError("ops.chaos_sync takes no command")
    if config.out.exists():
        raise OpsError(f"{config.out} exists; give another --out")
    config.out.mkdir(parents=True)
    chaos = ChaosSync(config)
    wrong: list[str] = []
    for number in range(config.faults):
        kind = _KINDS[number % len(_KINDS)]
        found = chaos.inject(kind)
        print(f"fault {number}: {kind}: {'; '.join(found) or 'nothing lost'}", flush=True)
        wrong += found
    wrong += chaos.save_in_peace()
    num_manifests = chaos.witness.num_manifests
    report = {"faults": config.faults, "manifests": num_manifests, "wrong": wrong}
    write_json(config.out / "report.json", report)
    print(f"{config.faults} faults, {num_manifests} states on the remote, {len(wrong)} losses")
    return 1 if wrong else 0


def main() -> None:
    """Run the chaos from the command line."""
    run_cli(ChaosSyncConfig, run)


if __name__ == "__main__":
    main()
