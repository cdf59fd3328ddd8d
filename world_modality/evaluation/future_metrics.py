"""How well the world ahead is predicted where that is no world token, beside trivial predictors."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.futures import VectorErrors
from world_modality.policy.predictions import FrameErrors
from world_modality.statistics.intervals import Interval
from world_modality.tokens.statistics import BigramBaseline, frames_with_future

FUTURE_TITLES = {
    "embedding": ("embedding ahead", "stays as it is"),
    "embedding_change": ("change of the embedding", "no change"),
    "change_token": ("change token", "most frequent"),
}
"""What each target is called, and the trivial predictor that it is held against."""


@dataclass(frozen=True)
class VectorFit:
    """How near a predicted vector comes to the true one, `frames_ahead` frames later.

    Attributes:
        horizon: k, 1…K.
        frames_ahead: k times the future stride.
        num_frames: validation frames that count.
        r2: 1 - squared error / that of the trivial vector: 0 is as good as that, 1 is exact.
        squared_error: in training standard deviations squared, mean over the dimensions; of `model`
            and `trivial`.
        cosine: between the vectors, standardised; likewise.
    """

    horizon: int
    frames_ahead: int
    num_frames: int
    r2: Interval
    squared_error: dict[str, Interval]
    cosine: dict[str, Interval]


@dataclass(frozen=True)
class ChangeAccuracy:
    """Accuracy of predicting the token of the change over `frames_ahead` frames.

    Attributes:
        horizon: K.
        frames_ahead: K times the future stride.
        num_frames: validation frames that count.
        accuracy: `model_top1`, `model_top5`, `most_frequent_top1`, `bigram_top1`; the bigram knows
            the token of the change before, up to the present frame.
        model_minus_bigram: paired difference of the top-1 accuracies.
    """

    horizon: int
    frames_ahead: int
    num_frames: int
    accuracy: dict[str, Interval]
    model_minus_bigram: Interval


FutureMetrics = dict[str, list[VectorFit] | list[ChangeAccuracy]]


def future_metrics(run: OfflineRun, errors: FrameErrors, seed: int) -> FutureMetrics:
    """Return by target how well it is predicted at each horizon; nothing where there is none."""
    found: FutureMetrics = {
        target: _vector_fits(run, errors.frames, vectors, seed)
        for target, vectors in errors.vectors.items()
    }
    if errors.change_rank is not None:
        found["change_token"] = [_change_accuracy(run, errors, errors.change_rank, seed)]
    return found


def future_sums(run: OfflineRun, errors: FrameErrors) -> dict[str, list[list[float]]]:
    """Return what several seeds' fits are put together from, per horizon and validation episode.

    `<target>_squared` and `<target>_trivial` are sums of squared errors, whose ratio says how much
    of the trivial vector's error is left; `change_token_hits` and `change_token_frames` count.
    """
    sums: dict[str, list[list[float]]] = {}
    for target, vectors in errors.vectors.items():
        for name, values in (("squared", vectors.squared), ("trivial", vectors.trivial_squared)):
            sums[f"{target}_{name}"] = [
                run.sum_by_val_episode(errors.frames, row).tolist() for row in values.T
            ]
    if errors.change_rank is not None:
        rank = errors.change_rank
        for name, marked in (("hits", rank == 0), ("frames", rank >= 0)):
            row = run.sum_by_val_episode(errors.frames, marked).tolist()
            sums[f"change_token_{name}"] = [row]
    return sums


def _vector_fits(
    run: OfflineRun, frames: Int[np.ndarray, " M"], errors: VectorErrors, seed: int
) -> list[VectorFit]:
    fits = []
    for step, inside in enumerate(errors.inside.T):

        def mean(values: np.ndarray, over: np.ndarray) -> Interval:
            return run.mean_over_frames(frames, values, over, seed)

        squared, trivial = errors.squared[:, step], errors.trivial_squared[:, step]
        left = mean(squared, trivial)
        fits.append(
            VectorFit(
                horizon=step + 1,
                frames_ahead=(step + 1) * run.policy.config.window.future_stride,
                num_frames=int(inside.sum()),
                r2=_one_minus(left),
                squared_error={"model": mean(squared, inside), "trivial": mean(trivial, inside)},
                cosine={
                    "model": mean(errors.cosine[:, step], inside),
                    "trivial": mean(errors.trivial_cosine[:, step], inside),
                },
            )
        )
    return fits


def _one_minus(share: Interval) -> Interval:
    low, value, high = (
        None if one is None else 1 - one for one in (share.high, share.value, share.low)
    )
    return Interval(value, low, high, share.num_episodes)


def _change_accuracy(
    run: OfflineRun, errors: FrameErrors, rank: Int[np.ndarray, " M"], seed: int
) -> ChangeAccuracy:
    window = run.policy.config.window
    steps = window.future_offset * window.future_stride
    inside = rank >= 0
    hits = {"model_top1": rank == 0, "model_top5": inside & (rank < 5)}
    hits |= _trivial_hits(run, errors.frames, steps)

    def mean(values: Bool[np.ndarray, " M"] | Int[np.ndarray, " M"]) -> Interval:
        return run.mean_over_frames(errors.frames, values * inside, inside, seed)

    lead = hits["model_top1"].astype(np.int8) - hits["bigram_top1"]
    accuracy = {name: mean(values) for name, values in hits.items()}
    return ChangeAccuracy(window.future_offset, steps, int(inside.sum()), accuracy, mean(lead))


def _trivial_hits(
    run: OfflineRun, frames: Int[np.ndarray, " M"], steps: int
) -> dict[str, Bool[np.ndarray, " M"]]:
    """Return where the most frequent change and the bigram, both of training episodes, hit."""
    assert run.tensors.change_tokens is not None, "the arm predicts no change tokens"
    tokens = run.tensors.change_tokens.cpu().numpy()
    episodes = run.tensors.episodes
    train = frames_with_future(episodes, run.train_ids, steps)
    commonest = int(np.bincount(tokens[train]).argmax())
    starts = episodes.starts[episodes.of_frame]
    known = train[train - steps >= starts[train]]
    bigram = BigramBaseline(tokens[known - steps], tokens[known], run.tensors.num_change_tokens)
    has_before = frames - steps >= starts[frames]
    # At an episode's start there is no change before; then the bigram says the most frequent one.
    guess = np.full(len(frames), commonest)
    guess[has_before] = bigram.top(tokens[frames[has_before] - steps], 1)[:, 0]
    return {
        "most_frequent_top1": tokens[frames] == commonest,
        "bigram_top1": tokens[frames] == guess,
    }
