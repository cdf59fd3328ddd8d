"""Kill a stage at random moments, resume it, and compare its end with that of an undisturbed run.

    python -m ops.chaos --out chaos --kills 20 --compare_pt 'model_*.pt' \
        --compare metrics.jsonl -- python train_model_c.py … --log_dir {dir}

`{dir}` stands for the folder of each run. The command is run undisturbed in `OUT/undisturbed`,
then again and again in `OUT/killed-…`: SIGKILL to the whole process group at a moment drawn
uniformly from the time that the undisturbed run took, then the same command with `--resume`, until
it ends by itself; another folder follows until all kills are spent. `--faults` also injects faults
of the disk: after each the command has to end with an error or with the undisturbed result, never
quietly with another one.

Exit codes: 0 every end agrees and every fault was noticed or mended, 1 if not, 2 a wrong command
line, 130 interrupted.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ops.atomic import write_json
from ops.chaos_run import MAX_FRUITLESS, PLACEHOLDER, ChaosOptions, ChaosRun, Finding
from ops.command_line import run_cli
from ops.comparison import ComparisonSpec
from ops.disk_faults import Fault
from ops.errors import OpsError, UsageError


@dataclass(frozen=True)
class ChaosConfig:
    """Kill the command after `--` at random moments, resume it, and compare the ends."""

    out: Path
    """Receives the runs' folders, their output and report.json; must not exist."""
    kills: int = 20
    """SIGKILLs in all."""
    faults: int = 0
    """Faults of the disk in all, of the kinds in turn."""
    fault_kinds: tuple[Fault, ...] = ("truncate", "flip", "read_only", "disk_full")
    """Which faults."""
    fault_files: tuple[str, ...] = ()
    """Patterns of files that are cut or flipped; by default those that are compared."""
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
    """Fields that may differ, at any depth."""
    resume_flag: str = "--resume"
    """Given to every run but the first; may be empty."""
    seed: int = 0
    """Of the moments and the faults."""

    @property
    def comparison(self) -> ComparisonSpec:
        """Return what is compared."""
        return ComparisonSpec(
            exact=self.compare,
            jsonl=self.compare_jsonl,
            npy=self.compare_npy,
            parquet=self.compare_parquet,
            pt=self.compare_pt,
            ignored=self.ignore,
        )

    @property
    def options(self) -> ChaosOptions:
        """Return what a chaos run needs of these."""
        return ChaosOptions(
            self.out, self.comparison, self.fault_files, self.resume_flag, self.seed
        )


def run(config: ChaosConfig, command: list[str]) -> int:
    """Do it all and report; returns the exit code.

    Raises:
        OpsError: the command lacks {dir}, nothing is compared, or the undisturbed run fails.
    """
    if not any(PLACEHOLDER in word for word in command):
        raise UsageError("the command after -- has to name its folder as {dir}")
    if not config.comparison.patterns:
        raise UsageError(
            "name what has to agree: --compare, --compare_jsonl, …_npy, …_parquet, …_pt"
        )
    if config.out.exists():
        raise OpsError(f"{config.out} exists; give another --out")
    config.out.mkdir(parents=True)
    chaos = ChaosRun(config.options, command)
    chaos.undisturbed()
    print(f"undisturbed: {chaos.seconds:.1f} s", flush=True)
    findings: list[Finding] = []
    kills = fruitless = 0
    while kills < config.kills and fruitless < MAX_FRUITLESS:
        folder = config.out / f"killed-{len(findings)}"
        finding, made = chaos.killed_until_it_ends(folder, config.kills - kills)
        kills += made
        fruitless = 0 if made else fruitless + 1
        _note(findings, finding)
    for number in range(config.faults):
        fault = config.fault_kinds[number % len(config.fault_kinds)]
        _note(findings, chaos.faulted(config.out / f"fault-{number}", fault))
    return _report(config, command, chaos.seconds, kills, findings)


def _note(findings: list[Finding], finding: Finding) -> None:
    findings.append(finding)
    print(f"{finding.folder}: {finding.what}: {finding.verdict}", flush=True)
    for difference in finding.differences[:5]:
        print(f"    {difference}", flush=True)


def _report(
    config: ChaosConfig, command: list[str], seconds: float, kills: int, findings: list[Finding]
) -> int:
    bad = [finding for finding in findings if not finding.is_good]
    report: dict[str, Any] = {
        "command": command,
        "seed": config.seed,
        "undisturbed_s": seconds,
        "kills": kills,
        "faults": config.faults,
        "bad": len(bad),
        "findings": [asdict(finding) for finding in findings],
    }
    write_json(config.out / "report.json", report)
    print(
        f"{kills} kills in {len(findings) - config.faults} runs, {config.faults} faults: "
        f"{len(findings) - len(bad)} good, {len(bad)} bad; {config.out / 'report.json'}"
    )
    return 1 if bad else 0


def main() -> None:
    """Run the chaos from the command line."""
    run_cli(ChaosConfig, run)


if __name__ == "__main__":
    main()
