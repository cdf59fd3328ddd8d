"""Held-out episodes explained under several conditions, compared with the model as it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from coc_vla.events.recorded import EventType
from coc_vla.head.evaluation import ExplainedRun, Trace, written_counts
from coc_vla.head.scores import EventScore, mean_counts, recall_difference
from world_modality.statistics.intervals import Interval

# The condition that the others are compared with.
MODEL = "model"


@dataclass(frozen=True)
class Condition:
    """How episodes are explained.

    Attributes:
        explained: by whom.
        frames: seen in the place of the episodes' own.
        world_tokens: of all N frames, in the place of the recorded ones.
        temperature: of sampling, None for greedy.
    """

    explained: ExplainedRun
    frames: Int[np.ndarray, "shares E"] | None = None
    world_tokens: Int[np.ndarray, " N"] | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class ConditionReport:
    """What came out under one condition.

    Attributes:
        perplexity: per token of the episodes' traces; None for sampled text, which has the same as
            greedy text.
        nats_per_trace: cross-entropy of a whole trace, on average.
        perplexity_by_share: at each frame that episodes are explained from.
        nats_minus_model: cross-entropy per token minus the model's, paired by episode; positive:
            worse than the model.
        scores: of the written events, by group.
        recall_by_share: of all events, at each frame.
        recall_minus_model: recall minus the model's by group, paired; negative: worse.
        changed: share of the written traces that differ from the model's greedy ones.
        written: the traces, share by share.
    """

    perplexity: Interval | None
    nats_per_trace: float | None
    perplexity_by_share: list[float] | None
    nats_minus_model: Interval | None
    scores: dict[str, EventScore]
    recall_by_share: list[float]
    recall_minus_model: dict[str, Interval]
    changed: float
    written: list[Trace] = field(repr=False)


def evaluate_conditions(
    conditions: Mapping[str, Condition],
    truth: Sequence[Sequence[EventType]],
    groups: Mapping[str, tuple[EventType, ...]],
    seed: int,
) -> dict[str, ConditionReport]:
    """Explain the episodes under each condition.

    Args:
        conditions: by name; `model` is among them.
        truth: the events of each episode.
        groups: of event types, `all` among them.
        seed: of sampling and of the bootstrap.
    """
    losses = {
        name: c.explained.losses(c.frames, c.world_tokens)
        for name, c in conditions.items()
        if c.temperature is None
    }
    written = {
        name: c.explained.written(c.frames, c.world_tokens, c.temperature, seed)
        for name, c in conditions.items()
    }
    episodes = conditions[MODEL].explained.episodes
    counts = {
        name: {
            group: written_counts(traces, episodes, truth, kinds) for group, kinds in groups.items()
        }
        for name, traces in written.items()
    }
    reports = {}
    for name, traces in written.items():
        own = {group: mean_counts(by_share) for group, by_share in counts[name].items()}
        loss = losses.get(name)
        reports[name] = ConditionReport(
            perplexity=None if loss is None else _perplexity(loss.per_token(seed)),
            nats_per_trace=None if loss is None else float(loss.nats.mean()),
            perplexity_by_share=None
            if loss is None
            else [math.exp(mean) for mean in loss.by_share()],
            nats_minus_model=None if loss is None else loss.minus(losses[MODEL], seed),
            scores={group: EventScore.of(count, seed) for group, count in own.items()},
            recall_by_share=[
                float(count.right.sum() / max(count.recorded.sum(), 1))
                for count in counts[name]["all"]
            ],
            recall_minus_model={
                group: recall_difference(count, mean_counts(counts[MODEL][group]), seed)
                for group, count in own.items()
            },
            changed=float(np.mean([a != b for a, b in zip(traces, written[MODEL], strict=True)])),
            written=traces,
        )
    return reports


def _perplexity(nats: Interval) -> Interval:
    value, low, high = (
        None if bound is None else math.exp(bound) for bound in (nats.value, nats.low, nats.high)
    )
    return Interval(value, low, high, nats.num_episodes)
