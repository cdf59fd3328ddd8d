"""How much of the robot's and the objects' state a linear map reads from an embedding or its token.

After Alain and Bengio (2016): the probe is linear and fitted apart, so that it measures what is
there to be read, not what a network could learn.

Tasks differ in where things are, so that who knows the task alone predicts much of the state. What
an embedding says beyond that is the R² within the task: of the deviations from the task's own mean.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from world_modality.statistics.intervals import Interval, ratio_interval, sum_by_episode
from world_modality.system.errors import InvalidInputError

# From next to none to next to all shrinkage, for standardised inputs, per training frame.
_PENALTIES_PER_FRAME = np.logspace(-6, 1, 8)
_SELECTION_SHARE = 0.2
# Below float32 rounding a dimension that varies less than this share of its size holds no signal.
_CONSTANT_TOLERANCE = 1e-6
# A dimension that varies within the tasks by less than this share of its deviation is told by the
# task; what is left is noise, of which a mean of R² would be full.
_TOLD_BY_TASK = 1e-3


@dataclass(frozen=True)
class ProbeFrames:
    """The inputs and targets of some frames, with the episode each belongs to.

    Attributes:
        embeddings: as the encoder gives them.
        tokens: their world tokens.
        targets: what the probe reads, in raw units.
        positions: the episode of each frame, as 0…E-1.
        tasks: the task of each frame.
    """

    embeddings: Float[np.ndarray, "M D"]
    tokens: Int[np.ndarray, " M"]
    targets: Float[np.ndarray, "M P"]
    positions: Int[np.ndarray, " M"]
    tasks: Int[np.ndarray, " M"]


@dataclass(frozen=True)
class ProbeScore:
    """R² on validation episodes: 1 - squared error / squared deviation from the validation mean.

    Within the task that is the mean of the task's validation frames.

    Attributes:
        mean: over the dimensions; no value where there is none.
        by_dim: within the task without dimensions that hardly vary there.
    """

    mean: Interval
    by_dim: dict[str, float]


@dataclass(frozen=True)
class ProbeResult:
    """The probes of one target.

    Attributes:
        embedding: ridge regression on the standardised embedding.
        token: regression on the one-hot world token, which is the mean of the target by token. It
            is no linear map of the embedding, so it can score above `embedding`.
        task_mean: the task's mean over training frames, which looks at no frame.
        embedding_within_task, token_within_task: the same predictions as `embedding` and `token`,
            scored within the task.
        penalty: the ridge penalty chosen on held-out training episodes.
        constant: dimensions left out, since they do not vary in training or in validation.
    """

    embedding: ProbeScore
    token: ProbeScore
    task_mean: ProbeScore
    embedding_within_task: ProbeScore
    token_within_task: ProbeScore
    penalty: float
    num_train_frames: int
    num_val_frames: int
    constant: list[str]


@dataclass(frozen=True)
class RidgeProbe:
    """A fitted ridge regression: `(x - input_mean) / input_scale @ weights + target_mean`."""

    input_mean: Float[np.ndarray, " D"]
    input_scale: Float[np.ndarray, " D"]
    weights: Float[np.ndarray, "D P"]
    target_mean: Float[np.ndarray, " P"]

    def predict(self, inputs: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "M P"]:
        """Return the targets read from these inputs."""
        standard = (inputs.astype(np.float64) - self.input_mean) / self.input_scale
        predicted: np.ndarray = standard @ self.weights + self.target_mean
        return predicted


def fit_ridge(
    inputs: Float[np.ndarray, "M D"], targets: Float[np.ndarray, "M P"], penalties: list[float]
) -> list[RidgeProbe]:
    """Fit ridge regressions with an unpenalised intercept, one for each penalty.

    Minimises ||Y - XW||² + penalty ||W||² on standardised X (Hoerl and Kennard, 1970); all
    penalties share one eigendecomposition of X'X.
    """
    values = inputs.astype(np.float64)
    mean, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale == 0] = 1.0
    values -= mean
    values /= scale
    target_mean = targets.mean(axis=0, dtype=np.float64)
    variances, axes = np.linalg.eigh(values.T @ values)
    projected = axes.T @ (values.T @ (targets - target_mean))
    # Rounding can leave an eigenvalue of a singular X'X just below 0.
    variances = np.maximum(variances, 0)[:, None]
    return [
        RidgeProbe(mean, scale, axes @ (projected / (variances + penalty)), target_mean)
        for penalty in penalties
    ]


def select_ridge(frames: ProbeFrames, seed: int) -> tuple[RidgeProbe, float]:
    """Fit the ridge probe, its penalty chosen on a held-out fifth of these episodes.

    Returns:
        The probe fitted on all of them, and the penalty.
    """
    positions = np.unique(frames.positions)
    penalties_of = [float(p) for p in _PENALTIES_PER_FRAME]
    if len(positions) < 2:
        penalty = penalties_of[len(penalties_of) // 2] * len(frames.targets)
    else:
        num_held_out = max(1, round(_SELECTION_SHARE * len(positions)))
        held_out = np.random.default_rng(seed).permutation(positions)[:num_held_out]
        test = np.isin(frames.positions, held_out)
        inputs, targets = frames.embeddings, frames.targets
        num_fit = int((~test).sum())
        probes = fit_ridge(inputs[~test], targets[~test], [p * num_fit for p in penalties_of])
        size = np.maximum(targets.std(axis=0), np.finfo(np.float32).tiny)
        errors = [
            np.mean(((probe.predict(inputs[test]) - targets[test]) / size) ** 2) for probe in probes
        ]
        penalty = penalties_of[int(np.argmin(errors))] * len(targets)
    return fit_ridge(frames.embeddings, frames.targets, [penalty])[0], penalty


def token_means(
    tokens: Int[np.ndarray, " M"], targets: Float[np.ndarray, "M P"], num_tokens: int
) -> Float[np.ndarray, "V P"]:
    """Return the mean target of each token; the mean over all frames for a token that has none.

    Tasks are numbers like tokens here.
    """
    counts = np.bincount(tokens, minlength=num_tokens)[:, None]
    sums = np.stack(
        [
            np.bincount(tokens, weights=column.astype(np.float64), minlength=num_tokens)
            for column in targets.T
        ],
        axis=1,
    )
    return np.where(
        counts > 0, sums / np.maximum(counts, 1), targets.mean(axis=0, dtype=np.float64)
    )


def probe_score(
    predicted: Float[np.ndarray, "M P"],
    frames: ProbeFrames,
    names: list[str],
    seed: int,
    *,
    within_task: bool = False,
) -> ProbeScore:
    """Score predictions by R², per dimension and on average, with an interval over episodes."""
    targets = frames.targets.astype(np.float64)
    deviations = (targets - targets.mean(axis=0)) ** 2
    if within_task:
        within = (targets - _task_centers(frames)) ** 2
        kept = within.sum(axis=0) > _TOLD_BY_TASK * deviations.sum(axis=0)
        names = [name for name, keep in zip(names, kept, strict=True) if keep]
        targets, predicted, deviations = targets[:, kept], predicted[:, kept], within[:, kept]
        if not names:
            return ProbeScore(Interval(None, None, None, 0), {})
    errors = (predicted - targets) ** 2
    totals = deviations.sum(axis=0)
    num_episodes = int(frames.positions.max()) + 1
    # Divided by its total deviation, every dimension weighs the same in the mean.
    lost = ratio_interval(
        sum_by_episode((errors / totals).sum(axis=1), frames.positions, num_episodes),
        sum_by_episode((deviations / totals).sum(axis=1), frames.positions, num_episodes),
        seed,
    )
    value, low, high = (
        None if share is None else 1 - share for share in (lost.value, lost.high, lost.low)
    )
    explained = 1 - errors.sum(axis=0) / totals
    return ProbeScore(
        mean=Interval(value, low, high, lost.num_episodes),
        by_dim=dict(zip(names, explained.tolist(), strict=True)),
    )


def _task_centers(frames: ProbeFrames) -> Float[np.ndarray, "M P"]:
    """Return the mean target over the frames of each frame's task."""
    centers = np.empty(frames.targets.shape)
    for task in np.unique(frames.tasks):
        own = frames.tasks == task
        centers[own] = frames.targets[own].mean(axis=0, dtype=np.float64)
    return centers


def run_probes(
    train: ProbeFrames, val: ProbeFrames, names: list[str], num_tokens: int, seed: int = 0
) -> ProbeResult | None:
    """Fit both probes on training frames and score them on validation frames.

    `names` are those of the target's dimensions; the result is None where all are constant.

    Raises:
        InvalidInputError: an embedding or a target is not finite.
    """
    for part in (train, val):
        for label, values in (("embedding", part.embeddings), ("target", part.targets)):
            if not np.isfinite(values).all():
                raise InvalidInputError(f"the {label}s of the linear probe hold NaN or infinity")
    varies = _varies(train.targets) & _varies(val.targets)
    if not varies.any():
        return None
    kept = [name for name, keep in zip(names, varies, strict=True) if keep]
    train, val = (replace(part, targets=part.targets[:, varies]) for part in (train, val))
    probe, penalty = select_ridge(train, seed)
    predicted = probe.predict(val.embeddings)
    by_token = token_means(train.tokens, train.targets, num_tokens)[val.tokens]
    num_tasks = 1 + int(max(train.tasks.max(), val.tasks.max()))
    by_task = token_means(train.tasks, train.targets, num_tasks)[val.tasks]
    return ProbeResult(
        embedding=probe_score(predicted, val, kept, seed),
        token=probe_score(by_token, val, kept, seed),
        task_mean=probe_score(by_task, val, kept, seed),
        embedding_within_task=probe_score(predicted, val, kept, seed, within_task=True),
        token_within_task=probe_score(by_token, val, kept, seed, within_task=True),
        penalty=penalty,
        num_train_frames=len(train.targets),
        num_val_frames=len(val.targets),
        constant=[name for name, keep in zip(names, varies, strict=True) if not keep],
    )


def _varies(targets: np.ndarray) -> np.ndarray:
    spread: np.ndarray = np.ptp(targets, axis=0) > _CONSTANT_TOLERANCE * np.abs(targets).max(axis=0)
    return spread
