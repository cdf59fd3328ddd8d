"""The tokens of whole training episodes that a checkpoint keeps."""

import numpy as np
import pytest

from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError
from world_modality.tokens import token_streams
from world_modality.tokens.corruption import RecordedTokens, read_corruption
from world_modality.tokens.token_streams import TokenStreams

LENGTHS = np.array([3, 5, 4, 2, 6, 3])
EPISODES = Episodes.from_frames(
    np.repeat(np.arange(6), LENGTHS), np.repeat(np.array([7, 9, 7, 7, 9, 7]), LENGTHS)
)
TOKENS = np.arange(LENGTHS.sum(), dtype=np.int32)
TRAINED = [0, 1, 2, 4, 5]


def taken(tokens: np.ndarray = TOKENS) -> TokenStreams:
    return TokenStreams.of_training(tokens, EPISODES, TRAINED, {9: 0, 7: 1})


def test_it_keeps_whole_training_episodes_by_the_row_of_their_task():
    streams = taken()
    of_seven = [one.tolist() for one in streams.of_task(1)]
    assert of_seven == [[0, 1, 2], [8, 9, 10, 11], [20, 21, 22]]
    assert [len(one) for one in streams.of_task(0)] == [5, 6]
    assert {array.dtype for array in streams.arrays().values()} == {np.dtype(np.int32)}


def test_of_many_episodes_it_keeps_some_that_are_spread_over_them(monkeypatch):
    monkeypatch.setattr(token_streams, "EPISODES_PER_TASK", 2)
    assert [one[0] for one in taken().of_task(1)] == [0, 8]


def test_tokens_of_many_slots_do_not_make_the_checkpoint_large(monkeypatch):
    monkeypatch.setattr(token_streams, "MAX_TOKENS", 4 * 4 * 2)
    several = taken(np.stack([TOKENS] * 4, axis=1))
    assert several.tokens.shape == (3 + 5, 4), "one episode of each task"


def test_what_a_checkpoint_keeps_is_read_back():
    again = TokenStreams.from_arrays({"other": TOKENS, **taken().arrays()}, 100)
    assert again is not None
    for name, array in taken().arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    assert TokenStreams.from_arrays({"other": TOKENS}, 100) is None


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("train_stream_tokens", TOKENS[:4]),
        ("train_stream_ends", np.array([3, 2, 12, 18, 21])),
        ("train_stream_tasks", np.array([0])),
    ],
)
def test_streams_that_do_not_fit_together_are_refused(name, array):
    with pytest.raises(InvalidInputError, match="do not fit together"):
        TokenStreams.from_arrays({**taken().arrays(), name: array}, 100)
    with pytest.raises(InvalidInputError, match="0 to 22, but its codebook has 22 tokens"):
        TokenStreams.from_arrays(taken().arrays(), 22)


def test_offline_another_training_episode_is_read_at_the_same_frame():
    frames = EPISODES.frames_of([3, 4])  # held out, and a training episode
    recorded = RecordedTokens(TOKENS, EPISODES, frames, EPISODES.frames_of(TRAINED), (1, 0))
    corruption = read_corruption("other_episode", "it")
    seen = set()
    for seed in range(30):
        read = corruption.offline_tokens(recorded, np.random.default_rng(seed))
        of_three, of_four = read[:2, 1], read[2:, 1]
        starts = EPISODES.starts[[0, 2, 5]]
        assert of_three[0] in starts
        assert of_three[1] == of_three[0] + 1
        assert of_four.tolist() == [3, 4, 5, 6, 7, 7], "its last token stays past its end"
        assert read[:, 0].tolist() == [of_three[0], of_three[0], 3, 3, 4, 5, 6, 6]
        seen.add(of_three[0])
    assert len(seen) == 3
