"""One command under chaos: killed and resumed, or met by a fault of the disk."""

import itertools
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from ops.comparison import ComparisonSpec, compare_folders
from ops.disk_faults import Fault, damage_file, run_in_read_only_folder, run_on_full_disk
from ops.errors import OpsError
from ops.killable import Outcome, run_killable

PLACEHOLDER = "{dir}"
MAX_FRUITLESS = 30


@dataclass(frozen=True)
class ChaosOptions:
    """What a chaos run needs to know.

    Attributes:
        out: receives the runs' folders and their output.
        comparison: what has to agree.
        fault_files: patterns of files that are damaged; those that are compared if empty.
        resume_flag: given to every run but the first.
        seed: of the moments and the faults.
    """

    out: Path
    comparison: ComparisonSpec
    fault_files: tuple[str, ...]
    resume_flag: str
    seed: int


@dataclass(frozen=True)
class Finding:
    """What one folder, or one fault, showed.

    Attributes:
        folder: where.
        what: the moments of the kills, or the fault.
        verdict: identical, noticed, or what is wrong.
        differences: to the undisturbed run.
    """

    folder: str
    what: str
    verdict: str
    differences: list[str]

    @property
    def is_good(self) -> bool:
        """Say whether nothing was lost and nothing was used silently."""
        return self.verdict in ("identical", "noticed")


class ChaosRun:
    """One command under chaos.

    Args:
        config: what is compared, and where.
        command: what follows `--`.
    """

    def __init__(self, config: ChaosOptions, command: list[str]) -> None:
        self._config = config
        self._command = command
        self._rng = random.Random(config.seed)
        self._numbers = itertools.count()
        self.reference = config.out / "undisturbed"
        self.seconds = 0.0

    def words(self, folder: Path, *, resume: bool) -> list[str]:
        """Return the command line for a folder."""
        flags = self._config.resume_flag.split() if resume else []
        return [word.replace(PLACEHOLDER, str(folder)) for word in self._command] + flags

    def undisturbed(self) -> None:
        """Run the command once in peace.

        Raises:
            OpsError: it fails, or what is to be compared is not there.
        """
        outcome = self._attempt(self.reference, resume=False)
        if outcome.exit_code != 0:
            raise OpsError(
                f"the undisturbed run ended with exit code {outcome.exit_code}: "
                f"{outcome.last_lines}"
            )
        self.seconds = outcome.seconds
        compare_folders(self.reference, self.reference, self._config.comparison)

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
            return Finding(str(folder), what, wrong, []), len(moments)
        return self._compared(folder, what), len(moments)

    def faulted(self, folder: Path, fault: Fault) -> Finding:
        """Inject one fault into a run that was killed half-way, and let it go on."""
        if fault == "disk_full":
            return self._on_full_disk(folder)
        for _ in range(MAX_FRUITLESS):
            kill_after = self._rng.uniform(0.3, 1.0) * self.seconds
            shutil.rmtree(folder, ignore_errors=True)
            self._attempt(folder, resume=False, kill_after_s=kill_after)
            files = self._fault_files(folder)
            if files or fault == "read_only":
                break
        else:
            raise OpsError(f"no file of {self._fault_patterns()} was there after a kill")
        if fault == "read_only":
            log = self._next_log()
            words = self.words(folder, resume=True)
            outcome = run_in_read_only_folder(words, folder, log)
            return self._after_refused_writes(folder, "read-only folder", outcome)
        what = damage_file(self._rng.choice(files), fault, self._rng)
        outcome = self._attempt(folder, resume=True)
        if outcome.exit_code != 0:
            return Finding(str(folder), what, "noticed", [outcome.last_lines])
        finding = self._compared(folder, what)
        if finding.is_good:
            return finding
        return Finding(str(folder), what, "USED SILENTLY", finding.differences)

    def _on_full_disk(self, folder: Path) -> Finding:
        files = self.reference.rglob("*")
        size = sum(path.stat().st_size for path in files if path.is_file())
        room = int(self._rng.uniform(0.05, 0.95) * size)
        words = self.words(folder, resume=False)
        outcome = run_on_full_disk(words, folder, self._next_log(), room)
        return self._after_refused_writes(folder, f"disk full after {room} bytes", outcome)

    def _after_refused_writes(self, folder: Path, what: str, outcome: Outcome) -> Finding:
        """Check that refused writes were noticed, and that the run goes on once they work."""
        if outcome.exit_code == 0:
            finding = self._compared(folder, what)
            return (
                finding
                if finding.is_good
                else Finding(str(folder), what, "LOST SILENTLY", finding.differences)
            )
        again = self._attempt(folder, resume=True)
        if again.exit_code != 0:
            wrong = f"does not go on afterwards: {again.last_lines}"
            return Finding(str(folder), what, wrong, [])
        return self._compared(folder, f"{what}: exit code {outcome.exit_code}")

    def _compared(self, folder: Path, what: str) -> Finding:
        differences = compare_folders(self.reference, folder, self._config.comparison)
        return Finding(str(folder), what, "DIFFERS" if differences else "identical", differences)

    def _attempt(self, folder: Path, *, resume: bool, kill_after_s: float | None = None) -> Outcome:
        words = self.words(folder, resume=resume)
        return run_killable(words, self._next_log(), kill_after_s=kill_after_s)

    def _next_log(self) -> Path:
        return self._config.out / "output" / f"{next(self._numbers):04d}.log"

    def _fault_patterns(self) -> tuple[str, ...]:
        return self._config.fault_files or self._config.comparison.patterns

    def _fault_files(self, folder: Path) -> list[Path]:
        found = {p for pattern in self._fault_patterns() for p in folder.glob(pattern)}
        return sorted(path for path in found if path.is_file() and path.stat().st_size)
