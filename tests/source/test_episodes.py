"""Episodes against plain loops, and what a split promises."""

import math

import numpy as np
import pytest

from world_modality.source.episodes import Episodes, split_episodes
from world_modality.system.errors import InvalidInputError


def make(lengths, tasks=None, ids=None):
    ids = list(range(len(lengths))) if ids is None else ids
    tasks = [0] * len(lengths) if tasks is None else tasks
    return Episodes.from_frames(
        np.repeat(np.asarray(ids, dtype=np.int32), lengths),
        np.repeat(np.asarray(tasks, dtype=np.int32), lengths),
    )


@pytest.mark.parametrize("seed", range(20))
def test_boundaries_and_membership_equal_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 12))
    ids = rng.choice(50, num, replace=False).tolist()
    lengths, tasks = rng.integers(1, 9, num).tolist(), rng.integers(0, 4, num).tolist()
    episodes = make(lengths, tasks, ids)
    chosen = [i for i in ids if rng.random() < 0.5]
    frame, of_frame, mask, starts, ends = 0, [], [], [], []
    for position, (identity, length) in enumerate(zip(ids, lengths, strict=True)):
        starts.append(frame)
        for _ in range(length):
            of_frame.append(position)
            mask.append(identity in chosen)
            frame += 1
        ends.append(frame)
    for name, expected in (
        *(("starts", starts), ("ends", ends), ("lengths", lengths), ("ids", ids)),
        *(("tasks", tasks), ("of_frame", of_frame)),
    ):
        assert getattr(episodes, name).tolist() == expected, name
    assert (len(episodes), episodes.num_frames) == (num, frame)
    assert episodes.frame_mask(chosen).tolist() == mask
    assert episodes.frames_of(chosen).tolist() == [t for t, inside in enumerate(mask) if inside]
    assert episodes.positions_of(chosen).tolist() == [
        position for position, identity in enumerate(ids) if identity in chosen
    ]


def test_a_dataset_without_frames_and_scattered_episodes_are_refused():
    with pytest.raises(InvalidInputError, match="no frames"):
        make([])
    index = np.array([0, 0, 7, 7, 0, 3], dtype=np.int32)
    with pytest.raises(InvalidInputError, match=r"episode_index \[0\].*is the episode key right"):
        Episodes.from_frames(index, np.zeros(6, dtype=np.int32))


def test_episodes_shorter_than_the_context_are_named_with_the_flag_that_helps():
    episodes = make([5, 2, 9, 3], ids=[4, 6, 8, 9])
    episodes.require_context(2)
    with pytest.raises(InvalidInputError, match=r"2 of 4 .*--context_frames 4: episode 6 \(2") as e:
        episodes.require_context(4)
    assert "9 (3 frames)" in str(e.value)
    assert "to 2 or less" in str(e.value)


@pytest.mark.parametrize("seed", range(30))
def test_a_split_holds_every_episode_once_and_is_even_over_tasks(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(2, 80))
    tasks = rng.integers(0, rng.integers(1, 9), num)
    ids = rng.choice(500, num, replace=False)
    fraction = float(rng.uniform(0.02, 0.6))
    episodes = make(rng.integers(1, 9, num), tasks, ids)
    split = split_episodes(episodes, fraction, seed)
    assert sorted(split.train + split.val) == sorted(ids.tolist())
    assert split.train == sorted(split.train)
    assert split.val == sorted(split.val)
    assert len(split.val) == min(num - 1, max(1, round(num * fraction)))
    share = len(split.val) / num
    for task in np.unique(tasks):
        members = ids[tasks == task].tolist()
        expected = len(members) * share
        held_out = sum(i in split.val for i in members)
        assert math.floor(expected - 1e-9) <= held_out <= math.ceil(expected + 1e-9)


def test_a_task_ordered_dataset_has_every_task_in_validation():
    episodes = make([3] * 100, np.repeat(np.arange(5), 20))
    split = split_episodes(episodes, 0.1, 0)
    assert [sum(i // 20 == task for i in split.val) for task in range(5)] == [2] * 5


def test_a_split_depends_on_the_seed_alone_and_not_on_the_lengths():
    tasks = np.arange(40) % 4
    short, long = make([2] * 40, tasks), make(np.arange(1, 41), tasks)
    assert split_episodes(short, 0.1, 3) == split_episodes(long, 0.1, 3)
    assert split_episodes(short, 0.1, 3) == split_episodes(short, 0.1, 3)
    assert len({tuple(split_episodes(short, 0.1, seed).val) for seed in range(20)}) > 10


def test_every_episode_is_held_out_about_equally_often():
    episodes = make([1] * 20, np.arange(20) % 3)
    counts = np.zeros(20)
    for seed in range(600):
        counts[split_episodes(episodes, 0.1, seed).val] += 1
    # 600 draws of probability 0.1: mean 60, standard deviation 7.3.
    assert counts.sum() == 1200
    assert 60 - 5 * 7.3 < counts.min() <= counts.max() < 60 + 5 * 7.3


def test_both_sides_of_a_split_hold_at_least_one_episode():
    for fraction in (0.001, 0.999):
        split = split_episodes(make([1, 1, 1]), fraction, 0)
        assert min(len(split.train), len(split.val)) == 1
    for fraction in (0.0, 1.0, -0.1, 1.5, float("nan")):
        with pytest.raises(InvalidInputError, match="--val_fraction must lie between 0 and 1"):
            split_episodes(make([1, 1, 1]), fraction, 0)
    with pytest.raises(InvalidInputError, match=r"1 episode cannot be split.*at least 2"):
        split_episodes(make([10]), 0.1, 0)
