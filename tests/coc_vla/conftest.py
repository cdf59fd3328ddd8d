import json

import pytest

from coc_vla.coc_generation import CocGenerationConfig
from tests.fixtures.instruction import add_column
from tests.fixtures.lerobot import make_dataset

NAME = "local/tiny"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("coc_vla.authors.openai_vlm.FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A dataset whose texts `good_reply` explains, and whose action has a gripper; not changed."""
    root = make_dataset(tmp_path_factory.mktemp("data") / NAME, num_episodes=6)
    info_path = root / "meta" / "info.json"
    info = json.loads(info_path.read_text("utf-8"))
    info["features"]["action"]["names"] = ["hand_dx", "gripper_effort"]
    info_path.write_text(json.dumps(info))
    add_column(root, "text", ["push the block to the goal"] * 78)
    return root


@pytest.fixture
def config(root, tmp_path):
    """Label that dataset by the rules."""
    return CocGenerationConfig(
        dataset_name=NAME,
        dataset_root=root,
        output_jsonl=tmp_path / "out" / "coc.jsonl",
        backend="rules",
    )
