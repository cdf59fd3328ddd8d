"""A recording with a cue and a screen, from the recorder's flags to a policy's rollouts."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.metaworld.cameras import MetaworldRendering
from benchmarks.metaworld.cue import Cue
from benchmarks.metaworld.eval_metaworld_success import EvalMetaworldConfig, run
from benchmarks.metaworld.occlusion import Occlusion
from benchmarks.metaworld.simulator import MetaworldSuite
from benchmarks.rollouts.parity.check import check_parity
from tests.fixtures.metaworld import record_cue
from world_modality.system.errors import InvalidInputError


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_cue(tmp_path_factory.mktemp("cue"))


@pytest.fixture(scope="module")
def config(recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return EvalMetaworldConfig(
        checkpoint=(recorded.train(folder, "A", use_language=False),),
        out_dir=folder / "rollouts",
        n_trials=1,
        env_num=1,
        max_steps=16,
        dataset_root=recorded.dataset_root,
        num_parity_episodes=2,
    )


def recording(config: EvalMetaworldConfig) -> dict:
    assert config.dataset_root is not None
    return json.loads((config.dataset_root / "meta" / "recording.json").read_text("utf-8"))


def test_the_record_says_what_was_shown_and_what_the_token_tells_of_it(config):
    record = recording(config)
    rendering = MetaworldRendering.from_record(record["rendering"])
    assert rendering.scene == (Cue("side", 4), Occlusion(30))
    assert set(record["checks"]["cue"]) >= {"cue_frames", "later_frames"}


def test_no_recorded_episode_turns_before_the_cue_and_two_chunks_are_over(config):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("local/two_tasks", root=config.dataset_root).hf_dataset
    columns = data.with_format("numpy")
    ahead = np.stack(columns["action"])[:, 1]
    for episode in recording(config)["episodes"]:
        own = ahead[np.array(columns["episode_index"]) == episode["episode_index"]]
        turn = int(np.flatnonzero(own != own[0])[0])  # it goes ahead at one speed until then
        assert 4 + 2 * 8 <= turn < 4 + 2 * 8 + 12


def test_the_parity_gate_replays_the_scene_and_the_report_states_the_chance(config, capsys):
    summary = run(config)
    assert "parity: local/two_tasks replayed" in capsys.readouterr().out
    assert any("a chance of 50 %" in note for note in summary["notes"])
    line = json.loads((config.out_dir / "results.jsonl").read_text("utf-8").splitlines()[0])
    assert line["rendering"]["cue"] == {"goals": "side", "frames": 4}


@pytest.mark.parametrize("name", ["cue", "occlusion"])
def test_a_replay_without_part_of_the_scene_does_not_pass_the_gate(config, name):
    rendering = MetaworldRendering.from_record(recording(config)["rendering"])
    others = tuple(change for change in rendering.scene if change.name != name)
    suite = MetaworldSuite(dataclasses.replace(rendering, scene=others))
    with pytest.raises(InvalidInputError, match="does not come out here as it was recorded"):
        check_parity(config.checkpoint[0], suite, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cue": "none"}, "was trained on a recording with cue .* and no cue is asked for"),
        ({"cue": "anywhere"}, '"goals": "anywhere"'),
        ({"cue_frames": 5}, '"frames": 5'),
        ({"occlusion_from": 31}, '"from_frame": 31'),
        ({"tasks": ("push-v3",)}, "--cue is there for reach-v3 alone, not for push-v3"),
    ],
)
def test_another_scene_or_task_is_refused(config, changes, message):
    changed = dataclasses.replace(config, **changes, out_dir=config.out_dir.with_name("other"))
    with pytest.raises(InvalidInputError, match=message):
        run(changed)
