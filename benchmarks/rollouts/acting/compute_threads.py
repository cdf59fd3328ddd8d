"""One thread for what is small: beside busy environments, many threads wait for each other.

A batch of one observation through `pixel-pca` and a small transformer takes 1.5 ms with one thread;
with as many threads as cores, and the cores busy, 120 ms were measured.
"""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


def single_thread() -> AbstractContextManager[Any]:
    """Return a context in which numpy, torch and faiss compute with one thread."""
    return _loaded_libraries().limit(limits=1)


@cache
def _loaded_libraries() -> ThreadpoolController:
    # Libraries that are loaded later would not be limited; finding them takes milliseconds.
    import faiss  # noqa: F401
    import torch  # noqa: F401

    return ThreadpoolController()
