"""The linear probe against scikit-learn and plain formulas, and what it may not look at."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from world_modality.system.errors import InvalidInputError
from world_modality.tokens.linear_probe import (
    ProbeFrames,
    fit_ridge,
    probe_score,
    run_probes,
    select_ridge,
    token_means,
)

NUM_TOKENS = 5


def frames_of(seed, num_episodes=12, noise=0.5, first_episode=0):
    """Targets: linear in the embedding; its token's mean; noise alone."""
    weights = np.random.default_rng(99).normal(size=6)
    rng = np.random.default_rng(seed)
    positions = np.repeat(np.arange(first_episode, first_episode + num_episodes), 20)
    tokens = rng.integers(0, NUM_TOKENS, len(positions))
    embeddings = rng.normal(size=(len(positions), 6)) * [1, 10, 0.1, 1, 1, 1] + 3
    linear = embeddings @ weights + noise * rng.normal(size=len(positions))
    by_token = np.array([5.0, -1, 4, 0, 2])[tokens] + 0.1 * rng.normal(size=len(positions))
    targets = np.stack([linear, by_token, rng.normal(size=len(positions))], axis=1)
    targets = targets.astype(np.float32)
    return ProbeFrames(embeddings.astype(np.float32), tokens, targets, positions, positions % 2)


TRAIN, VAL = frames_of(0), frames_of(1, first_episode=12)
NAMES = ["linear", "by_token", "noise"]


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 500.0])
def test_ridge_equals_scikit_learn(penalty):
    probe = fit_ridge(TRAIN.embeddings, TRAIN.targets, [penalty])[0]
    scaler = StandardScaler().fit(TRAIN.embeddings.astype(np.float64))
    ridge = Ridge(alpha=penalty).fit(
        scaler.transform(TRAIN.embeddings.astype(np.float64)), TRAIN.targets.astype(np.float64)
    )
    expected = ridge.predict(scaler.transform(VAL.embeddings.astype(np.float64)))
    np.testing.assert_allclose(probe.predict(VAL.embeddings), expected, rtol=1e-6, atol=1e-8)


def test_ridge_survives_constant_and_repeated_inputs():
    inputs = np.concatenate(
        [TRAIN.embeddings, TRAIN.embeddings[:, :1], np.full((240, 1), 7, np.float32)], axis=1
    )
    probe = fit_ridge(inputs, TRAIN.targets, [1.0])[0]
    assert np.isfinite(probe.predict(inputs)).all()


def test_token_means_equal_regression_on_the_one_hot_token():
    means = token_means(TRAIN.tokens, TRAIN.targets, NUM_TOKENS)
    encoder = OneHotEncoder(categories=[range(NUM_TOKENS)], sparse_output=False)
    one_hot = encoder.fit_transform(TRAIN.tokens[:, None])
    regression = LinearRegression(fit_intercept=False).fit(one_hot, TRAIN.targets)
    np.testing.assert_allclose(means, regression.coef_.T, atol=1e-6)


def test_a_token_without_training_frames_gets_the_overall_mean():
    targets = np.array([[1.0], [3.0], [8.0]])
    means = token_means(np.array([0, 0, 2]), targets, 4)
    assert means[:, 0].tolist() == [2, 4, 8, 4]


def test_scores_equal_scikit_learn():
    predicted = VAL.targets + np.random.default_rng(5).normal(size=VAL.targets.shape)
    score = probe_score(predicted, VAL, NAMES, 0)
    for dim, name in enumerate(NAMES):
        expected = r2_score(VAL.targets[:, dim], predicted[:, dim])
        assert score.by_dim[name] == pytest.approx(expected, abs=1e-6)
    assert score.mean.value == pytest.approx(np.mean(list(score.by_dim.values())))
    assert score.mean.low < score.mean.value < score.mean.high
    assert score.mean.num_episodes == 12


def test_planted_structure_is_found_in_the_right_place():
    result = run_probes(TRAIN, VAL, NAMES, NUM_TOKENS)
    assert result.embedding.by_dim["linear"] > 0.95
    assert result.token.by_dim["linear"] < 0.1
    assert result.embedding.by_dim["by_token"] < 0.1
    assert result.token.by_dim["by_token"] > 0.95
    assert abs(result.embedding.by_dim["noise"]) < 0.15
    assert (result.num_train_frames, result.num_val_frames) == (240, 240)


def test_within_the_task_a_score_is_that_of_the_deviations_from_the_tasks_mean():
    predicted = VAL.targets + np.random.default_rng(5).normal(size=VAL.targets.shape)
    score = probe_score(predicted, VAL, NAMES, 0, within_task=True)
    for dim, name in enumerate(NAMES):
        errors = deviations = 0.0
        for task in (0, 1):
            own = VAL.targets[VAL.tasks == task, dim].astype(np.float64)
            errors += ((predicted[VAL.tasks == task, dim] - own) ** 2).sum()
            deviations += ((own - own.mean()) ** 2).sum()
        assert score.by_dim[name] == pytest.approx(1 - errors / deviations, abs=1e-6)
    assert score.mean.value == pytest.approx(np.mean(list(score.by_dim.values())))


def test_what_the_task_tells_is_no_merit_of_the_embedding():
    """The embedding says which task it is, the target is the task's place plus noise."""
    rng = np.random.default_rng(7)

    def of_task(frames):
        place = np.array([-3.0, 3.0])[frames.tasks]
        embeddings = place[:, None] + 0.1 * rng.normal(size=(len(place), 4))
        noisy = place + 0.3 * rng.normal(size=len(place))
        targets = np.stack([noisy, place, frames.targets[:, 0]], axis=1)
        return dataclasses.replace(
            frames,
            embeddings=embeddings.astype(np.float32),
            targets=targets.astype(np.float32),
            tokens=frames.tasks,
        )

    names = ["noisy place", "place", "elsewhere"]
    result = run_probes(of_task(TRAIN), of_task(VAL), names, NUM_TOKENS)
    for score in (result.embedding, result.token, result.task_mean):
        assert score.by_dim["noisy place"] > 0.95
    assert result.task_mean.by_dim["noisy place"] == pytest.approx(
        r2_score(of_task(VAL).targets[:, 0], np.array([-3.0, 3.0])[VAL.tasks]), abs=0.02
    )
    assert result.embedding_within_task.by_dim["noisy place"] < 0.05
    assert result.token_within_task.by_dim["noisy place"] < 0.05
    # Told by the task alone: there is nothing within it to be read.
    assert list(result.embedding_within_task.by_dim) == ["noisy place", "elsewhere"]


def test_a_task_without_training_frames_is_predicted_by_the_overall_mean():
    strange = dataclasses.replace(VAL, tasks=VAL.tasks + 5)
    result = run_probes(TRAIN, strange, NAMES, NUM_TOKENS)
    held = np.broadcast_to(TRAIN.targets.mean(axis=0, dtype=np.float64), VAL.targets.shape)
    expected = probe_score(held, strange, NAMES, 0).by_dim
    assert result.task_mean.by_dim == pytest.approx(expected, abs=1e-9)


def test_noise_is_shrunk_more_than_signal():
    rng = np.random.default_rng(6)
    wide = rng.normal(size=(240, 150)).astype(np.float32)
    noise = dataclasses.replace(
        TRAIN, embeddings=wide, targets=rng.normal(size=(240, 1)).astype(np.float32)
    )
    signal = dataclasses.replace(TRAIN, embeddings=wide, targets=wide[:, :1] + wide[:, 1:2])
    assert select_ridge(noise, 0)[1] > 100 * select_ridge(signal, 0)[1]


def test_constant_dimensions_are_left_out_and_named():
    def with_constants(frames):
        fixed = np.zeros((len(frames.targets), 3), dtype=np.float32)
        fixed[:, 1] = 0.7
        # Varies in training alone.
        fixed[:, 2] = frames.tokens if frames is TRAIN else 1
        return dataclasses.replace(frames, targets=np.concatenate([fixed, frames.targets], axis=1))

    names = ["zero", "fixed", "fixed_later", *NAMES]
    result = run_probes(with_constants(TRAIN), with_constants(VAL), names, NUM_TOKENS)
    assert result.constant == ["zero", "fixed", "fixed_later"]
    assert list(result.embedding.by_dim) == NAMES
    assert result.embedding == run_probes(TRAIN, VAL, NAMES, NUM_TOKENS).embedding


def test_targets_that_are_all_constant_have_no_probe():
    still = [
        dataclasses.replace(part, targets=np.ones((240, 2), np.float32)) for part in (TRAIN, VAL)
    ]
    assert run_probes(*still, ["a", "b"], NUM_TOKENS) is None


def test_the_fit_does_not_look_at_validation_frames(monkeypatch):
    fitted = []

    def spy(inputs, targets, penalties):
        probes = fit_ridge(inputs, targets, penalties)
        fitted.append(probes[0].weights)
        return probes

    monkeypatch.setattr("world_modality.tokens.linear_probe.fit_ridge", spy)
    run_probes(TRAIN, VAL, NAMES, NUM_TOKENS)
    shifted = dataclasses.replace(VAL, embeddings=VAL.embeddings * 3 + 1, targets=-VAL.targets)
    run_probes(TRAIN, shifted, NAMES, NUM_TOKENS)
    run_probes(dataclasses.replace(TRAIN, targets=-TRAIN.targets), VAL, NAMES, NUM_TOKENS)
    before, after, other = fitted[1], fitted[3], fitted[5]
    np.testing.assert_array_equal(before, after)
    assert (before != other).any()


def test_one_training_episode_is_enough():
    single = dataclasses.replace(TRAIN, positions=np.zeros(len(TRAIN.tokens), dtype=np.int64))
    assert run_probes(single, VAL, NAMES, NUM_TOKENS).embedding.by_dim["linear"] > 0.9


@pytest.mark.parametrize("part", ["embeddings", "targets"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(part, wrong):
    values = getattr(VAL, part).copy()
    values[17, 1] = wrong
    with pytest.raises(InvalidInputError, match="NaN or infinity"):
        run_probes(TRAIN, dataclasses.replace(VAL, **{part: values}), NAMES, NUM_TOKENS)
