import os
import platform
import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from world_modality.system.device import resolve_device, torch_build
from world_modality.system.errors import InvalidInputError


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_is_the_gpu_where_there_is_one_and_the_cpu_elsewhere(monkeypatch):
    pretend_gpus(monkeypatch, 1)
    assert resolve_device("auto").type == "cuda"
    pretend_gpus(monkeypatch, 0)
    assert resolve_device("auto").type == "cpu"


def test_an_absent_gpu_is_an_error_that_names_the_torch_build(monkeypatch):
    pretend_gpus(monkeypatch, 0)
    with pytest.raises(InvalidInputError, match="sees 0 GPUs") as raised:
        resolve_device("cuda")
    assert torch_build() in str(raised.value)


def test_a_gpu_number_past_the_last_is_an_error(monkeypatch):
    pretend_gpus(monkeypatch, 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InvalidInputError, match="sees 2 GPUs"):
        resolve_device("cuda:2")


def test_an_unknown_device_name_is_an_error():
    with pytest.raises(InvalidInputError, match="--device gpu is none of auto, cpu, cuda"):
        resolve_device("gpu")


@pytest.mark.parametrize(
    ("cuda", "hip", "target"),
    [("12.8", None, "CUDA 12.8"), (None, "6.4", "ROCm 6.4"), (None, None, "CPU")],
)
def test_the_build_is_named_after_what_it_computes_on(monkeypatch, cuda, hip, target):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert torch_build() == f"{torch.__version__} for {target}"


def test_types_in_signatures_are_checked_under_pytest():
    with pytest.raises(TypeCheckError):
        resolve_device(0)


def test_the_number_of_threads_is_limited_under_pytest():
    assert torch.get_num_threads() <= int(os.environ["OMP_NUM_THREADS"])


# Tensors of 64 MiB, one after the other, in a second thread; prints the pages that the last five
# asked the kernel for.
TENSORS_IN_TURN = """
import resource, sys, threading
import torch
from world_modality.system.device import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def fill():
    global before
    for turn in range(25):
        if turn == 20:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(1 << 24).add_(1)
thread = threading.Thread(target=fill)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_of_large_tensors_is_used_again():
    def num_pages(kind):
        command = [sys.executable, "-c", TENSORS_IN_TURN, kind]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert num_pages("kept") < 0.1 * num_pages("given back")
