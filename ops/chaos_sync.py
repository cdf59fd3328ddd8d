"""Inject faults into a sync and check after each that nothing is lost.

    python -m ops.chaos_sync --out chaos_sync --faults 100

A folder is written as a training writes it (checkpoints under a temporary name and renamed, a log
that grows, `latest.json` and `last.pt` replaced, old checkpoints removed) while `ops.sync` saves it
on a folder remote through the real rclone, with a stand-in in PATH that fails on purpose. After
each fault a fresh restore has to give a state that the writer once had, and everything that any
manifest on the remote names has to be there, under its own name or in the history. Faults: a remote
that fails, hangs, is full, loses the connection in the middle of a file, leaves a torn file or
answers too late; SIGKILL of the sync itself at a random moment.

Exit codes: 0 nothing was lost, 1 something was, 2 a wrong command line, 130 interrupted.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ops.store.atomic import PARTIAL_SUFFIX, private_folder, write_json
from ops.store.errors import DamagedError, OpsError, UsageError, run_cli
from ops.store.faulty_rclone import FAULTS, install
from ops.store.manifest import MANIFESTS, Manifest, decode, newest_first, path_of
from ops.store.rclone import RcloneStore, parse_remote, rclone_folder
from ops.store.restore import RestoreOptions, Restorer
from ops.store.snapshot import is_log, scan_folder

_KINDS = (*FAULTS, "kill")
_RETRY_S = "1"
_RECOVERIES = 0.6
_CHECKPOINTS_HERE = 3
# A sync lists the manifests and what is there, then sends and lists the files, and sends and lists
# the manifest: calls 2 and 4 copy.
_CALLS = {"cut": (2, 4), "torn": (2, 4), "full": (2,)}
_NUM_CALLS = 6


class _Writer:
    """Writes a folder as a training does, and knows each state that it ever had."""

    def __init__(self, folder: Path, rng: random.Random, checkpoint_bytes: int) -> None:
        self.folder = folder
        self._rng = rng
        self._checkpoint_bytes = checkpoint_bytes
        self._epoch = 0
        self.states: list[dict[str, str]] = []
        folder.mkdir(parents=True)
        self._publish("config.json", b'{"seed": 0}\n')

    def step(self) -> None:
        """Log some lines, write a checkpoint, point to it, and now and then remove an old one."""
        lines = [
            json.dumps({"epoch": self._epoch, "line": line}) + "\n"
            for line in range(self._rng.randrange(1, 40))
        ]
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            log.write("".join(lines))
        self._note()
        checkpoint = self._rng.randbytes(self._checkpoint_bytes)
        self._publish(f"model_epoch{self._epoch}.pt", checkpoint)
        self._publish("last.pt", checkpoint[::-1])
        self._publish("latest.json", json.dumps({"epoch": self._epoch}).encode())
        (self.folder / f"half{PARTIAL_SUFFIX}").write_bytes(b"half")
        if self._epoch >= _CHECKPOINTS_HERE:
            (self.folder / f"model_epoch{self._epoch - _CHECKPOINTS_HERE}.pt").unlink()
            self._note()
        self._epoch += 1

    def _note(self) -> None:
        self.states.append(checksums(self.folder))

    def _publish(self, name: str, content: bytes) -> None:
        partial = self.folder / (name + PARTIAL_SUFFIX)
        partial.write_bytes(content)
        partial.replace(self.folder / name)
        self._note()


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all files that travel, by path."""
    return {
        path: hashlib.sha256((folder / path).read_bytes()).hexdigest()
        for path in scan_folder(folder).files
    }


class Witness:
    """Remembers every manifest that was ever seen on a remote that is a folder."""

    def __init__(self, remote: Path) -> None:
        self._remote = remote
        self.seen: dict[str, Manifest] = {}

    def losses(self) -> list[str]:
        """Return what a manifest named and the remote no longer has whole."""
        manifests = self._remote / MANIFESTS
        found = {path.name for path in manifests.glob("*.json")}
        for name in newest_first(found - self.seen.keys()):
            with contextlib.suppress(DamagedError):  # an upload that was cut: it names nothing
                content = (manifests / name.file_name).read_bytes()
                self.seen[name.file_name] = decode(name, content)
        lost = [f"manifest {name}" for name in self.seen.keys() - found]
        versions: dict[str, list[bytes]] = defaultdict(list)
        for place in self._remote.rglob("*"):
            path = path_of(place.relative_to(self._remote).as_posix())
            if path and place.is_file():
                versions[path].append(place.read_bytes())
        entries = {e for manifest in self.seen.values() for e in manifest.files.values()}
        for entry in entries:
            held = [v[: entry.size] if is_log(entry.path) else v for v in versions[entry.path]]
            if not any(hashlib.sha256(version).hexdigest() == entry.sha256 for version in held):
                lost.append(f"content of {entry.path} with {entry.size} bytes")
        return lost


@dataclass(frozen=True)
class ChaosSyncConfig:
    """Inject faults into a sync and check after each that nothing is lost."""

    out: Path
    """Folder that receives the runs' folders and report.json; it must not exist."""
    faults: int = 100
    """How many faults are injected; the kinds take turns."""
    seed: int = 0
    """Seed of the moments and of the content that is written."""
    checkpoint_kib: int = 64
    """Size of a checkpoint in KiB."""


class ChaosSync:
    """The folder, its sync and the faults."""

    def __init__(self, config: ChaosSyncConfig) -> None:
        self._rng = random.Random(config.seed)
        self._out = config.out
        self._remote = parse_remote(f":local:{config.out / 'remote'}")
        self._plan = install(config.out / "bin", rclone_folder() / "rclone")
        self._environment = os.environ | {
            "PATH": f"{config.out / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }
        self.writer = _Writer(config.out / "local", self._rng, config.checkpoint_kib * 1024)
        self.witness = Witness(config.out / "remote")

    def inject(self, kind: str) -> list[str]:
        """Write, save under one fault, and return what is wrong afterwards."""
        self.writer.step()
        process = self._start()
        if kind == "kill":
            time.sleep(self._rng.uniform(0.05, 3.0))
        else:
            # Which call of the round is hit is left to chance, as far as it makes a difference.
            lines = [""] * self._rng.choice(_CALLS.get(kind, tuple(range(_NUM_CALLS)))) + [kind]
            self._plan.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            self._wait_for_report(process, "last_error")
            if self._rng.random() < _RECOVERIES:
                # Otherwise the machine dies before the sync has tried again.
                self._wait_for_report(process, "saved_at")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._plan.write_text("", encoding="utf-8")
        return self.problems(kind)

    def problems(self, kind: str) -> list[str]:
        """Return what a fresh restore and the remote show to be wrong."""
        wrong = self.witness.losses()
        back = self._out / "restored"
        shutil.rmtree(back, ignore_errors=True)
        store, options = RcloneStore(self._remote), RestoreOptions(retries=0)
        try:
            # States that cannot be used are what a fault leaves behind: nothing is said of them.
            folders = (back, private_folder(back / ".sync"))
            Restorer(store, *folders, options, lambda message: None).restore()
        except OpsError as error:
            return [*wrong, f"{kind}: restore failed: {error}"]
        restored = checksums(back)
        if restored and restored not in self.writer.states:
            wrong.append(f"{kind}: the restored state never was")
        newest = max(self.witness.seen.values(), key=lambda state: state.number, default=None)
        if newest and restored != {p: entry.sha256 for p, entry in newest.files.items()}:
            wrong.append(f"{kind}: the restored state is not the newest complete one")
        return wrong

    def save_without_fault(self) -> list[str]:
        """Save without a fault; the newest state has to come back."""
        process = self._start("--once")
        process.wait()
        wrong = self.problems("no fault")
        if checksums(self._out / "restored") != self.writer.states[-1]:
            wrong.append("the newest state did not come back")
        return wrong

    def _start(self, *flags: str) -> "subprocess.Popen[bytes]":
        options = ["--interval", _RETRY_S, "--call_timeout", "4", "--quiet_s", "0.05"]
        options += ["--nice", "0", "--final_timeout", "120"]
        words = [sys.executable, "-m", "ops.sync", "dir", str(self.writer.folder)]
        words += [self._remote.text, *options, *flags]
        with (self._out / "sync.log").open("ab") as log:
            return subprocess.Popen(
                words, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def _wait_for_report(self, process: "subprocess.Popen[bytes]", field: str) -> None:
        """Wait until the sync reports a failure, or that it saved; the writer goes on meanwhile."""
        status = self.writer.folder / ".sync" / "status.json"
        if field == "last_error":
            status.unlink(missing_ok=True)
        until = time.monotonic() + 60
        next_step = time.monotonic() + self._rng.uniform(0.1, 3.0)
        while time.monotonic() < until and process.poll() is None:
            found = json.loads(status.read_text(encoding="utf-8")) if status.exists() else {}
            if found.get(field) or found.get("saved_at"):
                return
            time.sleep(0.02)
            if time.monotonic() > next_step:
                self.writer.step()
                next_step = time.monotonic() + self._rng.uniform(0.1, 3.0)


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
    wrong += chaos.save_without_fault()
    num_manifests = len(chaos.witness.seen)
    report = {"faults": config.faults, "manifests": num_manifests, "wrong": wrong}
    write_json(config.out / "report.json", report)
    print(f"{config.faults} faults, {num_manifests} states on the remote, {len(wrong)} losses")
    return 1 if wrong else 0


def main() -> None:
    """Run the chaos from the command line."""
    run_cli(ChaosSyncConfig, run)


if __name__ == "__main__":
    main()
