"""Kill a stage at random moments, resume it, and compare its end with that of an undisturbed run.

    python -m ops.chaos --out chaos --kills 20 --compare_pt 'model_*.pt' \
        --compare metrics.jsonl -- python train_model_c.py … --log_dir {dir}

`{dir}` stands for the folder of each run. The command is run undisturbed in `OUT/undisturbed`,
then again and again in `OUT/killed-…`: SIGKILL to the whole process group at a moment drawn
uniformly from the time that the undisturbed run took, then the same command with `--resume`, until
it ends by itself; another folder follows until all kills are spent. `--faults` also injects faults
of the disk, without privileges: after each the command has to end with an error or with the
undisturbed result, never quietly with another one.

Exit codes: 0 every end agrees and every fault was noticed or mended, 1 if not, 2 a wrong command
line, 130 interrupted.
"""

import itertools
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ops.comparison import Form, compare_folders
from ops.store.atomic import write_json
from ops.store.errors import OpsError, UsageError, run_cli

Fault = Literal["truncate", "flip", "read_only", "disk_full"]
_PLACEHOLDER = "{dir}"
_MAX_FRUITLESS = 30
_SHOWN = 5
_UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
_TICK_S = 0.005
_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class ChaosConfig:
    """Kill the command after `--` at random moments, resume it, and compare the ends."""

    out: Path
    """Folder that receives the runs' folders, their output and report.json; it must not exist."""
    kills: int = 20
    """How many times the command is killed (SIGKILL), over all runs."""
    faults: int = 0
    """How many faults of the disk are injected, over all runs; the kinds take turns."""
    fault_kinds: tuple[Fault, ...] = ("truncate", "flip", "read_only", "disk_full")
    """Kinds of faults that are injected."""
    fault_files: tuple[str, ...] = ()
    """Patterns of the files that are truncated or get a flipped bit; by default those that are
    compared."""
    compare: tuple[str, ...] = ()
    """Patterns of files that must agree byte by byte, relative to {dir}."""
    compare_jsonl: tuple[str, ...] = ()
    """Patterns of files that must agree as lines of JSON, without the ignored fields."""
    compare_npy: tuple[str, ...] = ()
    """Patterns of arrays that must agree bit by bit."""
    compare_parquet: tuple[str, ...] = ()
    """Patterns of parquet files whose columns must agree."""
    compare_pt: tuple[str, ...] = ()
    """Patterns of torch files whose tensors must agree bit by bit, without the ignored fields."""
    ignore: tuple[str, ...] = ("seconds", "log_dir", "resume", "overwrite")
    """Names of fields that may differ, at any depth."""
    resume_flag: str = "--resume"
    """Flag that every run but the first is given; it may be empty."""
    seed: int = 0
    """Seed of the moments and the faults."""

    @property
    def patterns(self) -> dict[Form, tuple[str, ...]]:
        """Return what is compared, by form."""
        return {
            "exact": self.compare,
            "jsonl": self.compare_jsonl,
            "npy": self.compare_npy,
            "parquet": self.compare_parquet,
            "pt": self.compare_pt,
        }


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        killed: whether this program ended it at the chosen moment.
        exit_code: of the command, negative for a signal.
        seconds: from its start to its end.
        log: its output.
    """

    killed: bool
    exit_code: int
    seconds: float
    log: Path

    @property
    def last_lines(self) -> str:
        """Return the end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-800:].strip()


@dataclass(frozen=True)
class Finding:
    """What one folder, or one fault, showed.

    Attributes:
        folder: of the run.
        what: the moments of the kills, or the fault.
        verdict: identical, noticed, or what is wrong.
        differences: to the undisturbed run.
    """

    folder: str
    what: str
    verdict: str
    differences: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Say whether nothing was lost and nothing was used silently."""
        return self.verdict in ("identical", "noticed")


class ChaosRun:
    """One command under chaos: what follows `--`."""

    def __init__(self, config: ChaosConfig, command: list[str]) -> None:
        self._config = config
        self._command = command
        self._rng = random.Random(config.seed)
        self._numbers = itertools.count()
        self._reference = config.out / "undisturbed"
        self.seconds = 0.0

    def undisturbed(self) -> None:
        """Run the command once without a fault.

        Raises:
            OpsError: it fails, or what is to be compared is not there.
        """
        outcome = self._attempt(self._reference, resume=False)
        if outcome.exit_code != 0:
            code = outcome.exit_code
            raise OpsError(f"the undisturbed run ended with exit code {code}: {outcome.last_lines}")
        self.seconds = outcome.seconds
        self._compared(self._reference, "undisturbed")

    def killed_until_it_ends(self, folder: Path, kills_left: int) -> tuple[Finding, int]:
        """Kill and resume in one folder; returns the finding and the number of kills."""
        moments: list[float] = []
        for attempt in itertools.count():
            kill_after = None
            if len(moments) < kills_left:
                kill_after = self._rng.uniform(0, self.seconds)
            outcome = self._attempt(folder, resume=attempt > 0, kill_after_s=kill_after)
            if not outcome.killed:
                break
            moments.append(outcome.seconds)
        what = "killed after " + ", ".join(f"{m:.2f}" for m in moments) + " s"
        if outcome.exit_code != 0:
            wrong = f"failed with exit code {outcome.exit_code}: {outcome.last_lines}"
            return Finding(str(folder), what, wrong), len(moments)
        return self._compared(folder, what), len(moments)

    def faulted(self, folder: Path, fault: Fault) -> Finding:
        """Inject one fault into a run that was killed half-way, and let it go on."""
        if fault == "disk_full":
            files = self._reference.rglob("*")
            size = sum(path.stat().st_size for path in files if path.is_file())
            room = int(self._rng.uniform(0.05, 0.95) * size)
            words = self._words(folder, resume=False)
            outcome = run_on_full_disk(words, folder, self._next_log(), room)
            return self._after_refused_writes(folder, f"disk full after {room} bytes", outcome)
        for _ in range(_MAX_FRUITLESS):
            kill_after = self._rng.uniform(0.3, 1.0) * self.seconds
            shutil.rmtree(folder, ignore_errors=True)
            self._attempt(folder, resume=False, kill_after_s=kill_after)
            files_hit = self._fault_files(folder)
            if files_hit or fault == "read_only":
                break
        else:
            raise OpsError("none of the files to be damaged was there after a kill")
        if fault == "read_only":
            words = self._words(folder, resume=True)
            outcome = run_in_read_only_folder(words, folder, self._next_log())
            return self._after_refused_writes(folder, "read-only folder", outcome)
        what = damage_file(self._rng.choice(files_hit), fault, self._rng)
        outcome = self._attempt(folder, resume=True)
        if outcome.exit_code != 0:
            return Finding(str(folder), what, "noticed", [outcome.last_lines])
        return self._compared(folder, what, "USED SILENTLY")

    def _after_refused_writes(self, folder: Path, what: str, outcome: Outcome) -> Finding:
        """Check that refused writes were noticed, and that the run goes on once they work."""
        if outcome.exit_code == 0:
            return self._compared(folder, what, "LOST SILENTLY")
        again = self._attempt(folder, resume=True)
        if again.exit_code != 0:
            return Finding(str(folder), what, f"does not go on afterwards: {again.last_lines}")
        return self._compared(folder, f"{what}: exit code {outcome.exit_code}")

    def _compared(self, folder: Path, what: str, wrong: str = "DIFFERS") -> Finding:
        patterns, ignored = self._config.patterns, self._config.ignore
        differences = compare_folders(self._reference, folder, patterns, ignored)
        return Finding(str(folder), what, wrong if differences else "identical", differences)

    def _attempt(self, folder: Path, *, resume: bool, kill_after_s: float | None = None) -> Outcome:
        return run_killable(self._words(folder, resume=resume), self._next_log(), kill_after_s)

    def _words(self, folder: Path, *, resume: bool) -> list[str]:
        flags = self._config.resume_flag.split() if resume else []
        return [word.replace(_PLACEHOLDER, str(folder)) for word in self._command] + flags

    def _next_log(self) -> Path:
        return self._config.out / "output" / f"{next(self._numbers):04d}.log"

    def _fault_files(self, folder: Path) -> list[Path]:
        patterns = self._config.fault_files or itertools.chain(*self._config.patterns.values())
        found = {path for pattern in patterns for path in folder.glob(pattern)}
        return sorted(path for path in found if path.is_file() and path.stat().st_size)


def run_killable(command: list[str], log: Path, kill_after_s: float | None = None) -> Outcome:
    """Run a command in a session of its own; kill the whole of it at a moment, if one is given.

    Args:
        command: program and arguments.
        log: receives stdout and stderr.
        kill_after_s: SIGKILL comes after this many seconds, unless the command has ended. Without
            it SIGKILL comes after an hour, and counts as an error of the command.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    end = started + (_TIMEOUT_S if kill_after_s is None else kill_after_s)
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
    folder.mkdir(parents=True, exist_ok=True)
    if not has_namespaces():
        # What is ignored stays so in the command: a write fails, where the signal would kill it.
        # Its output goes through a pipe, since the limit is for the command's files only.
        limits = f"trap '' XFSZ; ulimit -f {max(1, num_bytes // 1024)}"
        script = f"set -o pipefail; ({limits}; exec {shlex.join(command)}) 2>&1 | cat"
        return run_killable(["bash", "-c", script], log)
    kept = folder.with_name(folder.name + "-on-small-disk")
    kept.mkdir()
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


def run(config: ChaosConfig, command: list[str]) -> int:
    """Do it all and report; returns the exit code.

    Raises:
        OpsError: the command lacks {dir}, nothing is compared, or the undisturbed run fails.
    """
    if not any(_PLACEHOLDER in word for word in command):
        raise UsageError("the command after -- has to name its folder as {dir}")
    if not any(config.patterns.values()):
        raise UsageError("name what has to agree: --compare, or --compare_jsonl, …_npy, …_pt")
    if config.out.exists():
        raise OpsError(f"{config.out} exists; give another --out")
    config.out.mkdir(parents=True)
    chaos = ChaosRun(config, command)
    chaos.undisturbed()
    print(f"undisturbed: {chaos.seconds:.1f} s", flush=True)
    findings: list[Finding] = []
    kills = fruitless = 0
    while kills < config.kills and fruitless < _MAX_FRUITLESS:
        folder = config.out / f"killed-{len(findings)}"
        finding, made = chaos.killed_until_it_ends(folder, config.kills - kills)
        kills += made
        fruitless = 0 if made else fruitless + 1
        _note(findings, finding)
    for number in range(config.faults):
        fault = config.fault_kinds[number % len(config.fault_kinds)]
        _note(findings, chaos.faulted(config.out / f"fault-{number}", fault))
    num_bad = sum(not finding.is_good for finding in findings)
    report = {
        "command": command,
        "seed": config.seed,
        "undisturbed_s": chaos.seconds,
        "kills": kills,
        "faults": config.faults,
        "bad": num_bad,
        "findings": [asdict(finding) for finding in findings],
    }
    write_json(config.out / "report.json", report)
    print(
        f"{kills} kills in {len(findings) - config.faults} runs, {config.faults} faults: "
        f"{len(findings) - num_bad} good, {num_bad} bad; {config.out / 'report.json'}"
    )
    return 1 if num_bad else 0


def _note(findings: list[Finding], finding: Finding) -> None:
    findings.append(finding)
    print(f"{finding.folder}: {finding.what}: {finding.verdict}", flush=True)
    for difference in finding.differences[:_SHOWN]:
        print(f"    {difference}", flush=True)


def main() -> None:
    """Run the chaos from the command line."""
    run_cli(ChaosConfig, run)


if __name__ == "__main__":
    main()
