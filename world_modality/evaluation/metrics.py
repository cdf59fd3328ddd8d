"""Errors of a policy on held-out frames, beside predictors that look at little or nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.predictions import EVAL_BATCH_SIZE, FrameErrors, action_errors
from world_modality.statistics.intervals import Interval
from world_modality.tokens.statistics import BigramBaseline


def action_metrics(run: OfflineRun, errors: FrameErrors, seed: int) -> dict[str, object]:
    """Return the mean squared error of one predictor, overall and per chunk step.

    `mse` is in units of the training standard deviation squared (1 is a constant prediction of the
    overall training mean, about), `mse_raw` in the action's own units squared; both are means over
    all valid steps of all validation frames and over the action's dimensions.
    """
    metrics: dict[str, object] = {}
    counts = errors.valid.sum(axis=1)
    for name, squared in (("mse", errors.squared_error), ("mse_raw", errors.squared_error_raw)):
        metrics[name] = run.mean_over_frames(errors.frames, squared.sum(axis=1), counts, seed)
        per_step = squared.sum(axis=0, dtype=np.float64) / errors.valid.sum(axis=0)
        metrics[f"{name}_per_step"] = per_step.tolist()
    return metrics


def trivial_errors(run: OfflineRun) -> dict[str, FrameErrors]:
    """Return the errors of two predictors that hold one action over the whole chunk.

    `task_mean` predicts the mean action of the frame's task over the training episodes whose
    actions the policy learned from (of all of their frames where the task has none);
    `last_action` the action before frame t (at an episode's first frame, where there is none, the
    task mean).
    """
    frames = run.val_frames
    task_mean = _task_means(run)[run.tensors.episodes.of_frame[frames]]
    actions = run.tensors.actions.cpu().numpy()
    is_first = np.isin(frames, run.tensors.episodes.starts)
    last_action = np.where(is_first[:, None], task_mean, actions[frames - 1])
    return {
        "task_mean": _held_action_errors(run, frames, task_mean),
        "last_action": _held_action_errors(run, frames, last_action),
    }


def _task_means(run: OfflineRun) -> Float[np.ndarray, "E A"]:
    """Return, for each episode, the mean training action of its task."""
    episodes = run.tensors.episodes
    actions = run.tensors.actions.cpu().numpy().astype(np.float64)
    train = episodes.frame_mask(run.labelled_ids)
    task_of_frame = episodes.tasks[episodes.of_frame]
    overall = actions[train].mean(axis=0)
    means = np.tile(overall, (len(episodes), 1))
    for task in np.unique(episodes.tasks):
        chosen = train & (task_of_frame == task)
        if chosen.any():
            means[episodes.tasks == task] = actions[chosen].mean(axis=0)
    return means.astype(np.float32)


@torch.inference_mode()
def _held_action_errors(
    run: OfflineRun, frames: Int[np.ndarray, " M"], held: Float[np.ndarray, "M A"]
) -> FrameErrors:
    policy, shape = run.policy, run.policy.config.window
    parts = []
    for start in range(0, len(frames), EVAL_BATCH_SIZE):
        chosen = slice(start, start + EVAL_BATCH_SIZE)
        batch = run.tensors.gather(torch.from_numpy(frames[chosen]), shape)
        action = torch.from_numpy(held[chosen]).to(run.tensors.device)
        predicted = policy.action_norm(action)[:, None].expand_as(batch.actions)
        parts.append([e.cpu() for e in action_errors(policy, predicted, batch)])
    squared, raw, valid = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return FrameErrors(frames, squared, raw, valid, token_rank=None)


@dataclass(frozen=True)
class HorizonAccuracy:
    """Accuracy of predicting the tokens `frames_ahead` frames later, over all slots together.

    Attributes:
        horizon: k, 1…K.
        frames_ahead: k times the future stride.
        num_frames: validation frames that count; with several slots, tokens of these frames.
        accuracy: by predictor, e.g. `model_top1`, `copy_top1`, `bigram_top5`.
        model_minus_bigram: paired difference of the top-1 accuracies.
    """

    horizon: int
    frames_ahead: int
    num_frames: int
    accuracy: dict[str, Interval]
    model_minus_bigram: Interval


@dataclass(frozen=True)
class SlotAccuracy(HorizonAccuracy):
    """The same where a frame has several slots: of one of them, or of all together.

    Attributes:
        cross_entropy: of `model` and `bigram`, in nats a token.
    """

    cross_entropy: dict[str, Interval]


@dataclass(frozen=True)
class _Horizon:
    """What is to be predicted so many frames ahead, and which tokens count in each subset.

    Past the episode's end the rank is -1, and the target means nothing.
    """

    number: int
    steps: int
    rank: Int[np.ndarray, "M slots"]
    nats: Float[np.ndarray, "M slots"]
    source: Int[np.ndarray, "M slots"]
    target: Int[np.ndarray, "M slots"]
    counted: dict[str, Bool[np.ndarray, "M slots"]]


def _horizons(run: OfflineRun, errors: FrameErrors) -> Iterator[_Horizon]:
    assert errors.token_rank is not None, "the arm predicts no tokens"
    assert errors.token_nats is not None, "the arm predicts no tokens"
    tokens = _by_slot(run)
    by_horizon = zip(
        errors.token_rank.swapaxes(0, 1), errors.token_nats.swapaxes(0, 1), strict=True
    )
    for number, (rank, nats) in enumerate(by_horizon, 1):
        steps = number * run.policy.config.window.future_stride
        rank, nats = (values.reshape(len(values), -1) for values in (rank, nats))
        inside = rank >= 0
        source = tokens[errors.frames]
        target = tokens[np.where(inside[:, 0], errors.frames + steps, errors.frames)]
        counted = {"all": inside, "changed": inside & (source != target)}
        yield _Horizon(number, steps, rank, nats, source, target, counted)


def _by_slot(run: OfflineRun) -> Int[np.ndarray, "N slots"]:
    return run.tokens.reshape(len(run.tokens), -1)


def world_metrics(
    run: OfflineRun, errors: FrameErrors, seed: int
) -> dict[str, list[HorizonAccuracy]]:
    """Return accuracies per horizon, on `all` frames and where the token has `changed`.

    With several slots these are over all of them, and `all_slot0`, `changed_slot0`, … are of one.

    The bigram tables are counted on training episodes. Copying predicts w[t]; where w[t+k] differs
    from it, copying is wrong by construction, and a bigram that mostly copies nearly so. There
    `change_bigram` is the harder one to beat: counted on changed pairs alone, it knows what the
    policy does not, that the token changes.
    """
    metrics: dict[str, list[HorizonAccuracy]] = {"all": [], "changed": []}
    for at in _horizons(run, errors):
        hits = {
            "model_top1": at.rank == 0,
            "model_top5": (at.rank >= 0) & (at.rank < 5),
            "copy_top1": at.source == at.target,
        }
        nats = {"model": at.nats}
        for name, values in _bigram(run, at).items():
            (nats if name == "bigram" else hits)[name] = values
        num_slots = at.rank.shape[1]
        for subset, counted in at.counted.items():
            metrics[subset].append(_accuracy(run, errors, at, hits, nats, counted, seed))
            for slot in range(num_slots if num_slots > 1 else 0):
                only = counted & (np.arange(num_slots) == slot)
                rows = metrics.setdefault(f"{subset}_slot{slot}", [])
                rows.append(_accuracy(run, errors, at, hits, nats, only, seed))
    return metrics


def _accuracy(
    run: OfflineRun,
    errors: FrameErrors,
    at: _Horizon,
    hits: dict[str, Bool[np.ndarray, "M slots"]],
    nats: dict[str, Float[np.ndarray, "M slots"]],
    counted: Bool[np.ndarray, "M slots"],
    seed: int,
) -> HorizonAccuracy:
    """Average over the counted tokens."""

    def mean(values: np.ndarray) -> Interval:
        sums = (values * counted).sum(axis=1)
        return run.mean_over_frames(errors.frames, sums, counted.sum(axis=1), seed)

    accuracy = {name: mean(values) for name, values in hits.items()}
    gain = mean(hits["model_top1"].astype(np.int8) - hits["bigram_top1"])
    about = at.number, at.steps, int(counted.sum()), accuracy, gain
    if counted.shape[1] == 1:
        return HorizonAccuracy(*about)
    return SlotAccuracy(*about, {name: mean(values) for name, values in nats.items()})


def _bigram(run: OfflineRun, at: _Horizon) -> dict[str, Shaped[np.ndarray, "M slots"]]:
    """Return where tables hit that are counted slot by slot, and the `bigram`'s cross-entropy."""
    found: dict[str, list[np.ndarray]] = {}
    for tokens, source, target in zip(_by_slot(run).T, at.source.T, at.target.T, strict=True):
        fitted = tokens, run.tensors.episodes, run.train_ids, at.steps, run.num_world_tokens
        bigram = BigramBaseline.fit(*fitted)
        top5 = bigram.top(source, 5)
        where_to = BigramBaseline.fit(*fitted, changed_only=True).top(source, 1)
        found.setdefault("bigram_top1", []).append(top5[:, 0] == target)
        found.setdefault("bigram_top5", []).append((top5 == target[:, None]).any(axis=1))
        found.setdefault("change_bigram_top1", []).append(where_to[:, 0] == target)
        found.setdefault("bigram", []).append(bigram.nats(source, target))
    return {name: np.stack(slots, axis=1) for name, slots in found.items()}


def token_sums(run: OfflineRun, errors: FrameErrors) -> dict[str, list[list[float]]]:
    """Return top-1 hits and the tokens they are among, as [K, E]: per horizon and val episode.

    From these, runs on one cache can be compared pairwise; `all` and `changed` as above.
    """
    sums: dict[str, list[list[float]]] = {}
    for at in _horizons(run, errors):
        for name, counted in at.counted.items():
            for kind, values in (("hits", counted & (at.rank == 0)), ("frames", counted)):
                row = run.sum_by_val_episode(errors.frames, values.sum(axis=1)).tolist()
                sums.setdefault(f"top1_{kind}_{name}", []).append(row)
    return sums
