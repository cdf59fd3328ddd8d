"""Copy and bigram baselines against plain dictionaries."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from tests.fixtures.cache import SyntheticSpec, synthetic_arrays, synthetic_split
from world_modality.source.episodes import Episodes
from world_modality.tokens.statistics import BigramBaseline, frames_with_future

SPEC = SyntheticSpec(num_episodes=15, num_tokens=9, slip=0.4, min_length=2, max_length=14)


@pytest.fixture
def stream():
    arrays = synthetic_arrays(SPEC)
    episodes = Episodes.from_frames(arrays["episode_index"], arrays["task_index"])
    return arrays["world_tokens"], arrays["episode_index"], episodes


def pairs_by_hand(tokens, episode_index, ids, steps):
    return [
        (t, int(tokens[t]), int(tokens[t + steps]))
        for t in range(len(tokens) - steps)
        if episode_index[t] in ids and episode_index[t] == episode_index[t + steps]
    ]


def ranking_by_hand(pairs, num_tokens):
    """Successors by count; where equal the token itself first, then the commoner target."""
    counts, marginal = defaultdict(Counter), Counter(target for _, _, target in pairs)
    for _, source, target in pairs:
        counts[source][target] += 1
    return {
        source: sorted(
            range(num_tokens),
            key=lambda target: (
                -counts[source][target],
                target != source,
                -marginal[target],
                target,
            ),
        )
        for source in range(num_tokens)
    }


@pytest.mark.parametrize("steps", [1, 2, 5, 13, 14, 99])
def test_pairs_never_cross_an_episode_and_none_is_missing(stream, steps):
    tokens, episode_index, episodes = stream
    ids = [0, 3, 4, 11]
    frames = frames_with_future(episodes, ids, steps)
    expected = [t for t, _, _ in pairs_by_hand(tokens, episode_index, ids, steps)]
    assert frames.tolist() == expected


@pytest.mark.parametrize("steps", [1, 3])
def test_the_ranking_equals_counting_by_hand(stream, steps):
    tokens, episode_index, episodes = stream
    ids = [1, 2, 5, 6, 7, 8]
    pairs = pairs_by_hand(tokens, episode_index, ids, steps)
    assert len({source for _, source, _ in pairs}) > 5
    by_hand = ranking_by_hand(pairs, SPEC.num_tokens)
    bigram = BigramBaseline.fit(tokens, episodes, ids, steps, SPEC.num_tokens)
    asked = np.array([3, 0, 3, 8, 1, 2, 4, 5, 6, 7], dtype=np.int32)
    for num_best in (1, 5):
        expected = [by_hand[token][:num_best] for token in asked.tolist()]
        assert bigram.top(asked, num_best).tolist() == expected


def test_a_token_never_seen_predicts_itself_then_the_commonest():
    bigram = BigramBaseline(np.array([0, 0, 1]), np.array([2, 2, 1]), 5)
    assert bigram.top(np.array([4]), 3).tolist() == [[4, 2, 1]]


def test_a_small_codebook_gives_as_many_candidates_as_there_are():
    bigram = BigramBaseline(np.array([0, 1]), np.array([1, 0]), 2)
    assert bigram.top(np.array([0, 1]), 5).tolist() == [[1, 0], [0, 1]]


def test_it_can_be_fitted_on_no_pair_and_asked_for_none():
    nothing = np.zeros(0, dtype=np.int32)
    bigram = BigramBaseline(nothing, nothing, 4)
    assert bigram.top(np.array([2]), 1).tolist() == [[2]]
    assert bigram.top(nothing, 3).shape == (0, 3)


def test_ranking_in_blocks_equals_ranking_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    sources, targets = rng.integers(0, 50, 4000), rng.integers(0, 50, 4000)
    at_once = BigramBaseline(sources, targets, 50).top(np.arange(50), 5)
    monkeypatch.setattr("world_modality.tokens.statistics._ROWS_AT_A_TIME", 7)
    np.testing.assert_array_equal(
        BigramBaseline(sources, targets, 50).top(np.arange(50), 5), at_once
    )


def test_planted_dynamics_are_found():
    spec = SyntheticSpec(dwell=1, slip=0.0)
    arrays = synthetic_arrays(spec)
    episodes = Episodes.from_frames(arrays["episode_index"], arrays["task_index"])
    split = synthetic_split(spec, arrays)
    bigram = BigramBaseline.fit(arrays["world_tokens"], episodes, split.train, 2, spec.num_tokens)
    every = np.arange(spec.num_tokens)
    assert bigram.top(every, 1)[:, 0].tolist() == ((every + 2) % spec.num_tokens).tolist()


def test_validation_episodes_leave_the_counts_unchanged(stream):
    tokens, episode_index, episodes = stream
    train = [i for i in range(SPEC.num_episodes) if i % 3]
    held_out = ~np.isin(episode_index, train)
    changed = np.where(held_out, (tokens + 4) % SPEC.num_tokens, tokens).astype(np.int32)
    every = np.arange(SPEC.num_tokens)
    before = BigramBaseline.fit(tokens, episodes, train, 1, SPEC.num_tokens)
    after = BigramBaseline.fit(changed, episodes, train, 1, SPEC.num_tokens)
    np.testing.assert_array_equal(before.top(every, 9), after.top(every, 9))
    leaked = BigramBaseline.fit(changed, episodes, episodes.ids.tolist(), 1, SPEC.num_tokens)
    assert (leaked.top(every, 9) != before.top(every, 9)).any()
