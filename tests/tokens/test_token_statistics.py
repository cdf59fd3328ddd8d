"""Baselines and statistics of token streams against plain loops."""

import math
from collections import Counter

import numpy as np
import pytest

from tests.fixtures.cache import SyntheticSpec, synthetic_arrays, synthetic_split
from world_modality.source.episodes import Episodes
from world_modality.tokens import statistics
from world_modality.tokens.statistics import (
    BigramBaseline,
    codebook_usage,
    episode_phase,
    frames_with_future,
    horizon_scores,
    mutual_information_bits,
    phase_dependence,
    phase_histogram,
    task_dependence,
    token_dwell,
)

SPEC = SyntheticSpec(num_episodes=24, num_tokens=9, slip=0.2, dwell=3, min_length=4, max_length=25)


def stream_of(spec):
    arrays = synthetic_arrays(spec)
    episodes = Episodes.from_frames(arrays["episode_index"], arrays["task_index"])
    return arrays["world_tokens"], episodes, synthetic_split(spec, arrays)


@pytest.fixture(scope="module")
def stream():
    return stream_of(SPEC)


def pairs_by_hand(tokens, episodes, ids, steps):
    pairs = []
    for start, end, identity in zip(episodes.starts, episodes.ends, episodes.ids, strict=True):
        if identity in ids:
            episode = tokens[start:end].tolist()
            pairs += [(episode[t], episode[t + steps]) for t in range(len(episode) - steps)]
    return pairs


def ranking_by_hand(pairs, source):
    """Successors by count; where equal the token itself first, then the commoner target."""
    counts = Counter(target for now, target in pairs if now == source)
    marginal = Counter(target for _, target in pairs)
    return sorted(range(9), key=lambda t: (-counts[t], t != source, -marginal[t], t))


@pytest.mark.parametrize("steps", [1, 2, 5, 13, 24, 99])
def test_pairs_never_cross_an_episode_and_none_is_missing(stream, steps):
    tokens, episodes, _ = stream
    frames = frames_with_future(episodes, [0, 3, 4, 11], steps)
    found = list(zip(tokens[frames].tolist(), tokens[frames + steps].tolist(), strict=True))
    assert found == pairs_by_hand(tokens, episodes, [0, 3, 4, 11], steps)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_ranking_equals_counting_by_hand(stream, steps):
    tokens, episodes, split = stream
    pairs = pairs_by_hand(tokens, episodes, split.train, steps)
    bigram = BigramBaseline.fit(tokens, episodes, split.train, steps, 9)
    asked = np.array([3, 0, 3, 8, 1, 2, 4, 5, 6, 7], dtype=np.int32)
    for num_best in (1, 5):
        expected = [ranking_by_hand(pairs, token)[:num_best] for token in asked.tolist()]
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
    monkeypatch.setattr(statistics, "_ROWS_AT_A_TIME", 7)
    np.testing.assert_array_equal(
        BigramBaseline(sources, targets, 50).top(np.arange(50), 5), at_once
    )


def test_usage_equals_counting_by_hand(stream):
    tokens, _, _ = stream
    usage = codebook_usage(tokens, 20)
    counts = Counter(tokens.tolist())
    shares = [count / len(tokens) for count in counts.values()]
    entropy = -sum(share * math.log2(share) for share in shares)
    assert usage.entropy_bits == pytest.approx(entropy)
    assert usage.perplexity == pytest.approx(math.exp(entropy * math.log(2)))
    assert usage.entropy_share == pytest.approx(entropy / math.log2(20))
    assert (usage.num_used, usage.num_frames) == (len(counts), len(tokens))
    best = sorted(counts, key=lambda token: (-counts[token], token))[:3]
    assert usage.most_frequent(3) == [(t, pytest.approx(counts[t] / len(tokens))) for t in best]


def test_usage_of_one_code_and_of_all_codes_equally():
    single = codebook_usage(np.zeros(10, dtype=np.int32), 8)
    assert (single.num_used, single.perplexity, single.entropy_bits) == (1, 1.0, 0.0)
    assert single.most_frequent(5) == [(0, 1.0)]
    uniform = codebook_usage(np.arange(80, dtype=np.int32) % 8, 8)
    assert (uniform.perplexity, uniform.entropy_share) == (pytest.approx(8), pytest.approx(1))
    assert codebook_usage(np.zeros(10, dtype=np.int32), 1).entropy_share is None


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_baselines_equal_a_double_loop(stream, steps):
    tokens, episodes, split = stream
    train = pairs_by_hand(tokens, episodes, split.train, steps)
    val = pairs_by_hand(tokens, episodes, split.val, steps)
    commonest = min(
        range(9), key=lambda token: (-sum(target == token for _, target in train), token)
    )

    moved = [(now, target) for now, target in train if now != target]
    by_hand = {
        "copy": lambda now: [now],
        "bigram_top1": lambda now: ranking_by_hand(train, now)[:1],
        "bigram_top5": lambda now: ranking_by_hand(train, now)[:5],
        "change_bigram_top1": lambda now: ranking_by_hand(moved, now)[:1],
        "change_bigram_top5": lambda now: ranking_by_hand(moved, now)[:5],
        "marginal": lambda now: [commonest],
    }
    scores = horizon_scores(tokens, episodes, split, steps, 9)
    changed = [(now, target) for now, target in val if now != target]
    assert (scores.num_pairs, scores.num_changed) == (len(val), len(changed))
    assert 0 < len(changed) < len(val)
    assert scores.chance == 1 / 9
    assert set(scores.changed_pairs) == set(by_hand)
    assert set(scores.all_pairs) == {name for name in by_hand if not name.startswith("change")}
    for pairs, measured in ((val, scores.all_pairs), (changed, scores.changed_pairs)):
        for name, interval in measured.items():
            expected = np.mean([target in by_hand[name](now) for now, target in pairs])
            assert interval.value == pytest.approx(expected), name
            assert interval.low <= interval.value <= interval.high


def test_planted_dynamics_give_the_known_scores():
    spec = SyntheticSpec(num_episodes=30, dwell=4, min_length=41, max_length=41, slip=0.0)
    scores = horizon_scores(*stream_of(spec), 1, spec.num_tokens)
    # 41 frames on tokens of 4 frames each: 10 changes in 40 pairs.
    assert scores.all_pairs["copy"].value == pytest.approx(0.75)
    assert scores.all_pairs["bigram_top1"].value == pytest.approx(0.75)
    assert scores.changed_pairs["copy"].value == scores.changed_pairs["bigram_top1"].value == 0
    assert scores.changed_pairs["change_bigram_top1"].value == 1
    dwell = token_dwell(*stream_of(spec)[:2], list(range(30)))
    assert dwell.frames.value == pytest.approx(4)
    assert dwell.change_rate.value == pytest.approx(0.25)


def test_predictors_are_fitted_on_training_episodes_only(stream):
    """Relabelled validation tokens are scored by what training tokens alone have counted."""
    tokens, episodes, split = stream
    relabel = np.where(episodes.frame_mask(split.val), 8 - tokens, tokens).astype(np.int32)
    kept, moved = (horizon_scores(t, episodes, split, 1, 9) for t in (tokens, relabel))
    train = pairs_by_hand(tokens, episodes, split.train, 1)
    val = pairs_by_hand(relabel, episodes, split.val, 1)
    counts = {now: Counter(target for n, target in train if n == now) for now in range(9)}
    hits = [counts[now][target] == max(counts[now].values()) for now, target in val]
    assert moved.all_pairs["copy"] == kept.all_pairs["copy"]
    assert moved.all_pairs["bigram_top5"] != kept.all_pairs["bigram_top5"]
    assert moved.all_pairs["bigram_top1"].value == pytest.approx(np.mean(hits))


def test_horizons_longer_than_every_episode_have_no_score(stream):
    scores = horizon_scores(*stream, 60, 9)
    assert scores.num_pairs == 0
    assert all(interval.value is None for interval in scores.all_pairs.values())


def test_dwell_equals_a_plain_loop(stream):
    tokens, episodes, split = stream
    pairs = pairs_by_hand(tokens, episodes, split.train, 1)
    rate = np.mean([now != after for now, after in pairs])
    dwell = token_dwell(tokens, episodes, split.train)
    assert dwell.change_rate.value == pytest.approx(rate)
    assert dwell.frames.value == pytest.approx(1 / rate)
    assert dwell.frames.low < dwell.frames.value < dwell.frames.high


def test_tokens_that_never_change_have_no_dwell(stream):
    _, episodes, split = stream
    dwell = token_dwell(np.zeros(episodes.num_frames, dtype=np.int32), episodes, split.train)
    assert dwell.change_rate.value == 0
    assert dwell.frames.value is None


def test_mutual_information_equals_the_sum_over_cells():
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 6, 400), rng.integers(0, 3, 400)
    tokens[labels == 1] = 2
    expected = 0.0
    for token in range(6):
        for label in range(3):
            joint = np.mean((tokens == token) & (labels == label))
            if joint:
                separate = np.mean(tokens == token) * np.mean(labels == label)
                expected += joint * math.log2(joint / separate)
    assert mutual_information_bits(tokens, labels, 6) == pytest.approx(expected)


def test_phase_equals_a_plain_loop(stream):
    _, episodes, _ = stream
    expected = [10 * t // n for n in episodes.lengths.tolist() for t in range(n)]
    phases = episode_phase(episodes)
    assert phases.tolist() == expected
    assert (phases.min(), phases.max()) == (0, 9)


def test_the_phase_table_equals_a_plain_loop(stream):
    tokens, episodes, _ = stream
    phases = episode_phase(episodes)
    expected = np.zeros((12, 10), dtype=int)
    for token, phase in zip(tokens, phases, strict=True):
        expected[token, phase] += 1
    np.testing.assert_array_equal(phase_histogram(tokens, phases, 12), expected)


def test_a_token_that_names_the_task_tells_all_of_it(stream):
    _, episodes, split = stream
    tokens = np.repeat(episodes.tasks, episodes.lengths).astype(np.int32)
    task = task_dependence(tokens, episodes, split.train, 9)
    assert task.information_bits == pytest.approx(task.label_bits)
    assert task.excess_share > 0.8
    assert phase_dependence(tokens, episodes, split.train, 9).excess_bits == pytest.approx(0)


def test_a_token_that_names_the_phase_tells_most_of_it(stream):
    _, episodes, split = stream
    tokens = episode_phase(episodes).astype(np.int32)
    phase = phase_dependence(tokens, episodes, split.train, 10)
    assert phase.information_bits == pytest.approx(phase.label_bits)
    assert phase.excess_share > 0.6
    assert abs(task_dependence(tokens, episodes, split.train, 10).excess_share) < 0.05


def test_many_random_tokens_tell_nothing_beyond_the_control(stream):
    _, episodes, split = stream
    tokens = np.random.default_rng(0).integers(0, 200, episodes.num_frames).astype(np.int32)
    for dependence in (
        task_dependence(tokens, episodes, split.train, 200),
        phase_dependence(tokens, episodes, split.train, 200),
    ):
        # The plug-in estimate is far off with so many tokens, and the control takes that away.
        assert dependence.information_bits > 0.25
        assert abs(dependence.excess_share) < 0.06


def test_a_token_that_names_the_episode_is_no_evidence_about_the_task(stream):
    _, episodes, split = stream
    tokens = episodes.of_frame.astype(np.int32)
    task = task_dependence(tokens, episodes, split.train, len(episodes))
    assert task.information_bits == pytest.approx(task.label_bits)
    assert abs(task.excess_share) < 0.05


def test_a_single_task_has_nothing_to_tell():
    tokens, episodes, split = stream_of(SyntheticSpec(num_tasks=1))
    task = task_dependence(tokens, episodes, split.train, 8)
    assert (task.information_bits, task.label_bits, task.excess_share) == (0, 0, None)


def test_dependence_looks_at_the_given_episodes_only(stream):
    tokens, episodes, split = stream
    changed = np.where(episodes.frame_mask(split.val), 0, tokens).astype(np.int32)
    for dependence in (task_dependence, phase_dependence):
        expected = dependence(tokens, episodes, split.train, 9)
        assert dependence(changed, episodes, split.train, 9) == expected


def test_the_bigrams_cross_entropy_is_that_of_shares_that_sum_to_one(stream):
    tokens, episodes, split = stream
    bigram = BigramBaseline.fit(tokens, episodes, split.train, 2, 10)
    codes = np.arange(10)
    shares = np.exp(-bigram.nats(np.repeat(codes, 10), np.tile(codes, 10))).reshape(10, 10)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert shares.min() > 0  # code 9 is never seen
    pairs = pairs_by_hand(tokens, episodes, split.train, 2)
    counts, targets = Counter(pairs), Counter(target for _, target in pairs)
    sources = Counter(source for source, _ in pairs)
    prior = (targets[4] + 1 / 10) / (len(pairs) + 1)
    assert shares[3, 4] == pytest.approx((counts[3, 4] + prior) / (sources[3] + 1))
