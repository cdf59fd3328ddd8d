"""What tests of the training share."""

import os
import signal

import pytest

from tests.fixtures.cache import SyntheticSpec, write_synthetic_cache


@pytest.fixture
def cache(tmp_path):
    return write_synthetic_cache(tmp_path / "cache", SyntheticSpec(instruction_dim=5))


@pytest.fixture
def signal_at(monkeypatch):
    """Return what sends this process a signal before one call of a function does its work."""

    def arrange(owner, name, call, number=signal.SIGTERM):
        function = getattr(owner, name)
        calls = iter(range(1000))

        def wrapped(*arguments, **keywords):
            if next(calls) == call:
                os.kill(os.getpid(), number)
            return function(*arguments, **keywords)

        monkeypatch.setattr(owner, name, wrapped)

    return arrange
