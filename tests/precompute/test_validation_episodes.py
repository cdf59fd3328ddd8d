"""What is said of too few validation episodes, when the cache is made."""

import json

import numpy as np
import pytest

from world_modality.precompute.validation_episodes import held_out_by_task, validation_advice
from world_modality.precompute_world_tokens import run
from world_modality.source.episodes import Episodes, split_episodes

TASKS = {0: "push", 1: "lift", 2: "open"}


def advice(num_episodes, fraction):
    episodes = Episodes.from_frames(np.arange(num_episodes), np.arange(num_episodes) % 3)
    split = split_episodes(episodes, fraction, seed=0)
    return validation_advice(episodes, split, TASKS)


def test_the_summary_and_its_file_say_it(precompute_config, tmp_path, capsys):
    """Nine episodes of three tasks, of which one is held out."""
    cache = run(precompute_config(tmp_path)).cache
    told = capsys.readouterr().out
    path = cache.folder / "train_precompute_world_tokens_summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    by_task = summary["validation_episodes_by_task"]
    assert sum(by_task.values()) == summary["validation_episodes"] == 1
    assert set(by_task) == {"0", "1", "2"}
    (note,) = [note for note in summary["notes"] if note.startswith("validation")]
    assert f"note: {note}" in told
    assert "validation episodes: 1, fewer than 10 (--val_fraction of 9)" in note
    assert "3 of 3 tasks have fewer than 2 validation episodes ('push the block', " in note
    assert note.endswith("record more episodes, or join tasks")


@pytest.mark.parametrize(("num_episodes", "advised"), [(60, 0.2), (90, 0.15), (21, 0.5)])
def test_the_advised_fraction_is_enough(num_episodes, advised):
    (note,) = advice(num_episodes, 0.05)
    assert f"give --val_fraction {advised:g} " in note
    assert advice(num_episodes, advised) == []


def test_a_single_task_that_is_too_small_is_named():
    episodes = Episodes.from_frames(np.arange(100), np.array([0] * 96 + [1] * 4))
    split = split_episodes(episodes, 0.2, seed=0)
    held_out = held_out_by_task(episodes, split)
    assert sum(held_out.values()) == 20
    assert held_out[1] < 2
    (note,) = validation_advice(episodes, split, TASKS)
    assert note.startswith("1 of 2 tasks have fewer than 2 validation episodes ('lift'): ")
    assert "give --val_fraction 0.5 " in note
