"""What the doctor runs in a child process, where a native crash ends the probe and not the report.

`python -m world_modality.system.doctor_probes <probe> <arguments>` prints its answers as marked
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
from typing import Any

ANSWER_MARK = "doctor-answer "
MAX_REASON_LENGTH = 160

# Mesa and the GPU vendor each bring a driver for libEGL; one of them has to be there.
GL_LIBRARIES = (
    ("libEGL.so.1",),
    ("libGL.so.1",),
    ("libEGL_mesa.so.0", "libEGL_nvidia.so.0"),
)

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
    command = [sys.executable, "-m", f"{__package__}.doctor_probes", name, *arguments]
    repository = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join([repository, *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, **(environment or {}), "PYTHONPATH": search_path}
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=variables,
    )
    failure = None
    try:
        output, errors = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        output, errors = child.communicate()
        failure = f"no answer within {timeout_s:g} s"
    marked = [line for line in output.splitlines() if line.startswith(ANSWER_MARK)]
    answers = [json.loads(line.removeprefix(ANSWER_MARK)) for line in marked]
    if failure is None and child.returncode != 0:
        failure = describe_end(child.returncode, errors)
    return ProbeResult(answers, failure)


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


def missing_gl_libraries() -> list[str]:
    """List the GL libraries that the dynamic linker does not find, alternatives joined by `or`."""
    return [" or ".join(names) for names in GL_LIBRARIES if not any(map(_loads, names))]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def probe_rendering() -> None:
    """Render one frame of a lit box and answer with the range of its pixels and what drew it."""
    _answer(missing_libraries=missing_gl_libraries())
    import mujoco

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, height=64, width=64)
    renderer.update_scene(data, camera="above")
    started = time.perf_counter()
    frame = renderer.render()
    seconds = time.perf_counter() - started
    from OpenGL import GL

    drawn_by = GL.glGetString(GL.GL_RENDERER).decode()
    _answer(low=int(frame.min()), high=int(frame.max()), drawn_by=drawn_by, seconds=seconds)
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


PROBES: dict[str, Callable[..., None]] = {
    "imports": probe_imports,
    "rendering": probe_rendering,
    "device": probe_device,
    "hub": probe_hub,
}

if __name__ == "__main__":
    PROBES[sys.argv[1]](*sys.argv[2:])
