import pytest

from tests.ops.world import World


@pytest.fixture
def world(tmp_path):
    """A machine with a folder, and a remote that is a folder, through the real rclone."""
    return World(tmp_path)
