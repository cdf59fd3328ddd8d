"""What an explainer makes of held-out episodes: how likely it finds their traces, what it writes.

The trace describes a whole episode, the explainer sees one frame of it. Which one matters, so every
episode is explained from five of its frames, from the first to the last; intervals are over
episodes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from coc_vla.events.claims import claimed_events
from coc_vla.events.recorded import EventType
from coc_vla.head.decoding import trace_losses, write_traces
from coc_vla.head.scores import (
    EventCounts,
    EventScore,
    count_events,
    mean_counts,
    partners_within_task,
    recall_difference,
)
from coc_vla.head.text_head import Explainer, eval_frames, text_targets
from coc_vla.labels.trace import TraceStep
from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.network import TrunkHidden
from world_modality.policy.predictions import hidden_states
from world_modality.statistics.intervals import Interval, ratio_interval

# The condition that the others are compared with.
MODEL = "model"
Trace = tuple[TraceStep, ...]


@dataclass(frozen=True)
class EvaluatedEpisodes:
    """Held-out episodes with a label, and the frames at `EVAL_SHARES` that explain them."""

    ids: Int[np.ndarray, " E"]
    tasks: Int[np.ndarray, " E"]
    frames: Int[np.ndarray, "shares E"]
    traces: list[Trace] = field(repr=False)
    instructions: list[str] = field(repr=False)

    @classmethod
    def of(
        cls, run: OfflineRun, traces: dict[int, Trace], instructions: dict[int, str]
    ) -> "EvaluatedEpisodes":
        """Choose the frames of the episodes that have these traces, by `episode_index`."""
        episodes = run.tensors.episodes
        rows = episodes.positions_of(list(traces))
        ids = episodes.ids[rows]
        return cls(
            ids=ids,
            tasks=episodes.tasks[rows],
            frames=eval_frames(episodes, rows),
            traces=[traces[i] for i in ids.tolist()],
            instructions=[instructions[i] for i in ids.tolist()],
        )

    def frames_of_partners(self, rng: np.random.Generator) -> Int[np.ndarray, "shares E"]:
        """Return, for each frame, the one at the same share of another episode of its task."""
        frames: np.ndarray = self.frames[:, partners_within_task(self.tasks, rng)]
        return frames


@dataclass(frozen=True)
class TextLosses:
    """Cross-entropy of the recorded traces, summed over each, and its number of tokens."""

    nats: Float[np.ndarray, "shares E"]
    tokens: Float[np.ndarray, "shares E"]

    def perplexity(self, seed: int) -> Interval:
        """Return the exponential of the mean per token."""
        mean = ratio_interval(self.nats.sum(axis=0), self.tokens.sum(axis=0), seed)
        value, low, high = (
            None if bound is None else math.exp(bound)
            for bound in (mean.value, mean.low, mean.high)
        )
        return Interval(value, low, high, mean.num_episodes)

    def minus(self, other: "TextLosses", seed: int) -> Interval:
        """Return this mean minus another's, paired by episode; positive: this one is worse."""
        difference = (self.nats - other.nats).sum(axis=0)
        return ratio_interval(difference, self.tokens.sum(axis=0), seed)

    def perplexity_by_share(self) -> list[float]:
        """Return the same at each share of the episode."""
        return [math.exp(mean) for mean in self.nats.sum(axis=1) / self.tokens.sum(axis=1)]


@dataclass(frozen=True)
class Condition:
    """How episodes are explained.

    Attributes:
        run: whose trunk.
        explainer: the head on it.
        episodes: that are explained.
        frames: seen instead of the episodes' own.
        world_tokens: what the trunk reads at each of the N frames instead of the recorded ones.
        temperature: of sampling, None for greedy.
    """

    run: OfflineRun
    explainer: Explainer
    episodes: EvaluatedEpisodes
    frames: Int[np.ndarray, "shares E"] | None = None
    world_tokens: Int[np.ndarray, " N *RW"] | None = None
    temperature: float | None = None

    def losses(self) -> TextLosses:
        """Return the losses of the episodes' own traces."""
        own, explainer = self.episodes.frames, self.explainer
        targets = text_targets(
            dict(zip(self.episodes.ids.tolist(), self.episodes.traces, strict=True)),
            self.run.tensors.episodes,
            explainer.tokenizer,
            explainer.decoder.config.max_tokens,
            self.run.tensors.device,
        )
        tokens = targets.tokens_at(own.reshape(-1))
        sums = trace_losses(explainer.decoder, self._hidden(), tokens, explainer.tokenizer.pad)
        return TextLosses(*(part.double().cpu().numpy().reshape(own.shape) for part in sums))

    def written(self, seed: int) -> list[Trace]:
        """Return the trace written at each frame, share by share."""
        decoder, tokenizer = self.explainer.decoder, self.explainer.tokenizer
        return write_traces(decoder, tokenizer, self._hidden(), self.temperature, seed)

    def _hidden(self) -> TrunkHidden:
        seen = (self.episodes.frames if self.frames is None else self.frames).reshape(-1)
        tokens = None if self.world_tokens is None else self.world_tokens[seen]
        return hidden_states(self.run.policy, self.run.tensors, seen, tokens)


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
    """Explain the episodes under each condition, by name, `model` among them.

    Args:
        conditions: how.
        truth: the events of each episode.
        groups: of event types, `all` among them.
        seed: of sampling and of the bootstrap.
    """
    written = {name: condition.written(seed) for name, condition in conditions.items()}
    losses = {n: c.losses() for n, c in conditions.items() if c.temperature is None}
    instructions = conditions[MODEL].episodes.instructions
    counts = {
        name: _counts_by_share(traces, instructions, truth, groups)
        for name, traces in written.items()
    }
    reports = {}
    for name, traces in written.items():
        own = {group: mean_counts(by_share) for group, by_share in counts[name].items()}
        loss = losses.get(name)
        reports[name] = ConditionReport(
            perplexity=None if loss is None else loss.perplexity(seed),
            nats_per_trace=None if loss is None else float(loss.nats.mean()),
            perplexity_by_share=None if loss is None else loss.perplexity_by_share(),
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


def _counts_by_share(
    written: Sequence[Trace],
    instructions: Sequence[str],
    truth: Sequence[Sequence[EventType]],
    groups: Mapping[str, tuple[EventType, ...]],
) -> dict[str, list[EventCounts]]:
    """Compare what is written with what happened: for each group one entry for each share."""
    num_episodes = len(instructions)
    claims = [
        claimed_events(trace, instructions[position % num_episodes])
        for position, trace in enumerate(written)
    ]
    shares = [claims[i : i + num_episodes] for i in range(0, len(claims), num_episodes)]
    return {
        group: [count_events(share, truth, kinds) for share in shares]
        for group, kinds in groups.items()
    }
