"""World-token accuracy of a policy beside copying and counting, on the same frames."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.predictions import FrameErrors
from world_modality.statistics.intervals import Interval
from world_modality.tokens.statistics import BigramBaseline

Mask = Bool[np.ndarray, " M"]


@dataclass(frozen=True)
class HorizonAccuracy:
    """Accuracy of predicting the token `frames_ahead` frames later.

    Attributes:
        horizon: k, 1…K.
        frames_ahead: k times the future stride.
        num_frames: validation frames that count.
        accuracy: by predictor, e.g. `model_top1`, `copy_top1`, `bigram_top5`.
        model_minus_bigram: paired difference of the top-1 accuracies.
    """

    horizon: int
    frames_ahead: int
    num_frames: int
    accuracy: dict[str, Interval]
    model_minus_bigram: Interval


def world_metrics(
    run: OfflineRun, errors: FrameErrors, seed: int
) -> dict[str, list[HorizonAccuracy]]:
    """Return accuracies per horizon, on `all` frames and where the token has `changed`.

    The bigram tables are counted on training episodes. Copying predicts w[t]; where w[t+k] differs
    from it, copying is wrong by construction, and a bigram that mostly copies nearly so. There
    `change_bigram` is the harder one to beat: counted on changed pairs alone, it is told what the
    policy is not, that the token changes.

    Raises:
        ValueError: the arm predicts no tokens.
    """
    if errors.token_rank is None:
        raise ValueError("an arm without token predictions has no world accuracy")
    metrics: dict[str, list[HorizonAccuracy]] = {"all": [], "changed": []}
    for horizon in range(1, run.policy.config.future_offset + 1):
        steps = horizon * run.policy.config.future_stride
        rank = errors.token_rank[:, horizon - 1]
        inside = rank >= 0
        source = run.tokens[errors.frames]
        target = run.tokens[np.where(inside, errors.frames + steps, errors.frames)]
        hits = {
            "model_top1": rank == 0,
            "model_top5": inside & (rank < 5),
            "copy_top1": source == target,
            **_bigram_hits(run, source, target, steps),
        }
        for subset, counted in (("all", inside), ("changed", inside & (source != target))):
            accuracy = {
                name: run.mean_over_frames(errors.frames, hit & counted, counted, seed)
                for name, hit in hits.items()
            }
            gain = (hits["model_top1"].astype(np.int8) - hits["bigram_top1"]) * counted
            metrics[subset].append(
                HorizonAccuracy(
                    horizon=horizon,
                    frames_ahead=steps,
                    num_frames=int(counted.sum()),
                    accuracy=accuracy,
                    model_minus_bigram=run.mean_over_frames(errors.frames, gain, counted, seed),
                )
            )
    return metrics


def _bigram_hits(
    run: OfflineRun, source: np.ndarray, target: np.ndarray, steps: int
) -> dict[str, Mask]:
    fitted = run.tokens, run.tensors.episodes, run.train_ids, steps, run.num_world_tokens
    bigram = BigramBaseline.fit(*fitted).top(source, 5)
    where_to = BigramBaseline.fit(*fitted, changed_only=True)
    return {
        "bigram_top1": bigram[:, 0] == target,
        "bigram_top5": (bigram == target[:, None]).any(axis=1),
        "change_bigram_top1": where_to.top(source, 1)[:, 0] == target,
    }


def token_sums(run: OfflineRun, errors: FrameErrors) -> dict[str, list[list[float]]]:
    """Return top-1 hits and the frames they are among, as [K, E]: per horizon and val episode.

    From these, runs on one cache can be compared pairwise; `all` and `changed` as above.
    """
    if errors.token_rank is None:
        return {}
    sums: dict[str, list[list[float]]] = {}
    for horizon, rank in enumerate(errors.token_rank.T, 1):
        steps = horizon * run.policy.config.future_stride
        inside = rank >= 0
        target = np.where(inside, errors.frames + steps, errors.frames)
        changed = inside & (run.tokens[errors.frames] != run.tokens[target])
        for name, counted in (("all", inside), ("changed", changed)):
            for kind, values in (("hits", counted & (rank == 0)), ("frames", counted)):
                row = run.sum_by_val_episode(errors.frames, values).tolist()
                sums.setdefault(f"top1_{kind}_{name}", []).append(row)
    return sums
