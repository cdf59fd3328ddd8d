import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from world_modality import doctor
from world_modality.system.doctor_checks import (
    DEPENDENCIES,
    Dependency,
    ProbeResult,
    describe_end,
    device_finding,
    import_findings,
    rendering_finding,
    run_probe,
    video_finding,
)

REPOSITORY = Path(__file__).resolve().parents[2]

# Makes every EGL library unfindable, in each Python process that has its folder on PYTHONPATH.
HIDE_EGL = """
import ctypes
real = ctypes._dlopen
def without_egl(name, *rest):
    if name and "EGL" in str(name):
        raise OSError(f"{name}: cannot open shared object file")
    return real(name, *rest)
ctypes._dlopen = without_egl
"""


def run_doctor(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "world_modality.doctor", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", **variables}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return what writes a module that the children can import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, code: (tmp_path / f"{name}.py").write_text(code)


def test_findings_are_printed_and_written_as_json_and_a_failure_is_named(tmp_path):
    (tmp_path / "file").touch()
    json_path = tmp_path / "report" / "doctor.json"
    cache_dir = str(tmp_path / "file" / "cache")
    flags = ("--cache_dir", cache_dir, "--json_path", str(json_path))
    done = run_doctor("--checks", "machine", "disk", *flags)
    assert done.returncode == 1
    assert "checks failed: disk of --cache_dir" in done.stderr
    assert "Traceback" not in done.stderr
    findings = json.loads(json_path.read_text("utf-8"))["findings"]
    names = [finding["check"] for finding in findings]
    assert names == ["machine", "disk of --cache_dir", "HF_LEROBOT_HOME"]
    assert findings[1]["status"] == "FAIL"
    for finding in findings:
        assert finding["found"] in done.stdout


def test_one_frame_is_rendered_with_egl():
    done = run_doctor("--checks", "rendering", MUJOCO_GL="egl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^ok +rendering \(MUJOCO_GL=egl\) +drawn by \S", done.stdout, re.MULTILINE)


def test_a_missing_egl_library_is_named_with_the_packages_that_bring_it(module):
    module("sitecustomize", HIDE_EGL)
    done = run_doctor("--checks", "rendering", MUJOCO_GL="egl")
    assert done.returncode == 1
    assert "FAIL  rendering" in done.stdout
    assert "libEGL.so.1, libEGL_mesa.so.0 or libEGL_nvidia.so.0 not found" in done.stdout
    assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (Debian" in done.stdout
    assert "dnf install libglvnd-egl mesa-libEGL mesa-dri-drivers (Fedora" in done.stdout


def test_a_crash_of_the_gl_driver_is_reported_and_does_not_end_the_doctor(module):
    module("mujoco", "import os; os.abort()")
    done = run_doctor("--checks", "rendering", "machine")
    assert done.returncode == 1
    assert "crashed (SIGABRT)" in done.stdout
    assert "CPU cores" in done.stdout


@pytest.mark.parametrize(("high", "word"), [(0, "black"), (90, "of one colour")])
def test_a_frame_that_shows_nothing_is_a_failure(high, word):
    answer = {"low": high, "high": high, "drawn_by": "driver"}
    finding = rendering_finding("egl", ProbeResult([{"missing_libraries": []}, answer], None))
    assert finding.status == "FAIL"
    assert word in finding.found


def test_a_missing_dependency_names_the_requirement_and_what_it_is_for(module):
    module("needs_another", "import torchvision_that_is_absent")
    module("broken_library", "raise OSError('libx.so.1: cannot open')")
    module("crashing_module", "import os; os.abort()")
    module("raising_module", "raise RuntimeError('wrong driver\\nsecond line')")
    expected = {
        Dependency("numpy", "numpy", "arrays", essential=True): ("ok", np.__version__, ""),
        Dependency("absent_module", "faiss-cpu", "assigning tokens"): (
            *("warn", "No module named"),
            "pip install -r requirements.txt brings faiss-cpu; needed for assigning tokens",
        ),
        Dependency("absent.part", "torch", "training", essential=True): ("FAIL", "absent", "torch"),
        Dependency("needs_another", "lerobot", "datasets"): (
            *("warn", "torchvision_that_is_absent"),
            "install torchvision_that_is_absent",
        ),
        Dependency("broken_library", "mujoco", "rollouts"): ("warn", "libx.so.1: cannot", "mujoco"),
        # A crash does not hide those after it.
        Dependency("crashing_module", "x", "a", essential=True): ("FAIL", "crashed (SIGABRT)", ""),
        Dependency("raising_module", "x", "b"): ("warn", "RuntimeError: wrong driver", ""),
        Dependency("scipy", "scipy", "c"): ("ok", "", ""),
    }
    findings = import_findings(tuple(expected))
    for finding, (status, found, advice) in zip(findings, expected.values(), strict=True):
        assert finding.status == status
        assert found in finding.found
        assert advice in finding.advice


def test_every_dependency_is_in_the_requirements():
    lines = (REPOSITORY / "requirements.txt").read_text("utf-8").splitlines()
    required = {re.split(r"[\[<>=~! ;]", line)[0] for line in lines if line[:1].isalnum()}
    assert {dependency.requirement for dependency in DEPENDENCIES} <= required


@pytest.mark.slow
def test_every_dependency_imports_here():
    findings = import_findings(DEPENDENCIES)
    assert [f for f in findings if f.status != "ok"] == []


def test_an_unreachable_hub_is_a_warning_that_says_how_to_work_without():
    done = run_doctor("--checks", "hub", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("warn  hub")
    assert "--dataset_root" in done.stdout
    assert "pixel-pca" in done.stdout


def test_a_hub_that_answers_is_reachable():
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"id": "HuggingFaceVLA/libero", "sha": "0" * 40}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = run_doctor("--checks", "hub", HF_ENDPOINT=address, NO_PROXY="127.0.0.1")
        server.shutdown()
    assert done.stdout.startswith("ok    hub"), done.stdout + done.stderr


def test_a_probe_that_hangs_is_ended(module):
    module("hanging_module", "import time; time.sleep(60)")
    result = run_probe("imports", "json=json", "hanging_module=x", timeout_s=2)
    assert result.failure == "no answer within 2 s"
    assert [answer["module"] for answer in result.answers] == ["json"]


def test_the_device_that_auto_takes_is_computed_on():
    result = run_probe("device")
    assert result.failure is None
    finding = device_finding(result, [])
    assert finding.status in {"ok", "warn"}
    assert "torch" in finding.found


def test_a_gpu_that_torch_does_not_see_or_that_does_not_compute_is_told():
    answer = {"device": "cpu", "name": "", "num_devices": 0, "bf16": False, "build": "2.10 for CPU"}
    without_gpu = device_finding(ProbeResult([answer], None), [])
    unseen_gpu = device_finding(ProbeResult([answer], None), ["/dev/kfd"])
    assert "KEEP_TORCH" not in without_gpu.advice
    assert "/dev/kfd exists" in unseen_gpu.found
    assert "make env KEEP_TORCH=1" in unseen_gpu.advice
    broken = device_finding(ProbeResult([], "RuntimeError: no kernel image"), ["/dev/nvidia0"])
    assert (broken.status, broken.found) == ("FAIL", "RuntimeError: no kernel image")


@pytest.mark.parametrize(("needed_gb", "status"), [(1e9, "warn"), (0.0, "ok")])
def test_little_disk_and_little_memory_are_warnings(tmp_path, monkeypatch, needed_gb, status):
    monkeypatch.setattr(doctor, "MIN_FREE_GB", needed_gb)
    monkeypatch.setattr(doctor, "MIN_MEMORY_GB", needed_gb)
    config = doctor.DoctorConfig(checks=("disk", "machine"), cache_dir=tmp_path)
    assert [finding.status for finding in doctor.run(config)] == [status] * 3


@pytest.mark.parametrize(
    ("loading", "status", "words"),
    [(["av", "torchcodec.decoders"], "ok", ""), (["av"], "warn", "ffmpeg"), ([], "warn", "av")],
)
def test_video_decoding_needs_one_decoder(loading, status, words):
    finding = video_finding(ProbeResult([{"module": m, "version": "1"} for m in loading], None))
    assert finding.status == status
    assert words in finding.advice


def test_the_exception_that_ended_a_probe_is_its_failure():
    errors = "warning\nTraceback (most recent call last):\n  File\nValueError: first\nsecond\n"
    assert describe_end(1, errors) == "ValueError: first"
    assert describe_end(-11, errors) == "crashed (SIGSEGV)"
    assert describe_end(3, "") == "no message"
