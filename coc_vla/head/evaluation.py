"""What an explainer makes of held-out episodes: how likely it finds their traces, what it writes.

The trace describes a whole episode, the explainer sees one frame of it. Which one matters, so every
episode is explained from five of its frames, from the first to the last; intervals are over
episodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int

from coc_vla.events.claims import claimed_events
from coc_vla.events.recorded import EventType
from coc_vla.head.decoding import trace_losses, write_traces
from coc_vla.head.scores import EventCounts, count_events, partners_within_task
from coc_vla.head.targets import frames_along, text_targets
from coc_vla.head.text_head import EVAL_SHARES, Explainer
from coc_vla.labels.trace import TraceStep
from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.network import TrunkHidden
from world_modality.policy.predictions import hidden_states
from world_modality.statistics.intervals import Interval, ratio_interval

Trace = tuple[TraceStep, ...]


@dataclass(frozen=True)
class EvaluatedEpisodes:
    """Held-out episodes with a label, and the frames that they are explained from.

    Attributes:
        ids: `episode_index`.
        tasks: of each episode.
        frames: at each of the shares `EVAL_SHARES` of each episode's length.
        traces: their labels.
        instructions: what was told in each.
    """

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
            frames=np.stack([frames_along(episodes, rows.tolist(), s) for s in EVAL_SHARES]),
            traces=[traces[i] for i in ids.tolist()],
            instructions=[instructions[i] for i in ids.tolist()],
        )

    def frames_of_partners(self, rng: np.random.Generator) -> Int[np.ndarray, "shares E"]:
        """Return, for each frame, the one at the same share of another episode of its task."""
        frames: np.ndarray = self.frames[:, partners_within_task(self.tasks, rng)]
        return frames


@dataclass(frozen=True)
class TextLosses:
    """Cross-entropy of the recorded traces.

    Attributes:
        nats: summed over each trace.
        tokens: that were predicted.
    """

    nats: Float[np.ndarray, "shares E"]
    tokens: Float[np.ndarray, "shares E"]

    def per_token(self, seed: int) -> Interval:
        """Return the mean in nats; its exponential is the perplexity."""
        return ratio_interval(self.nats.sum(axis=0), self.tokens.sum(axis=0), seed)

    def minus(self, other: "TextLosses", seed: int) -> Interval:
        """Return this mean minus another's, paired by episode; positive: this one is worse."""
        difference = (self.nats - other.nats).sum(axis=0)
        return ratio_interval(difference, self.tokens.sum(axis=0), seed)

    def by_share(self) -> list[float]:
        """Return the mean at each share of the episode."""
        return [float(mean) for mean in self.nats.sum(axis=1) / self.tokens.sum(axis=1)]


@dataclass(frozen=True)
class ExplainedRun:
    """A checkpoint's trunk and explainer on the episodes that are evaluated."""

    run: OfflineRun
    explainer: Explainer
    episodes: EvaluatedEpisodes

    def losses(
        self,
        frames: Int[np.ndarray, "shares E"] | None = None,
        world_tokens: Int[np.ndarray, " N"] | None = None,
    ) -> TextLosses:
        """Return the losses of the episodes' own traces.

        Args:
            frames: that the trunk sees in the place of the episodes' own.
            world_tokens: of all N frames, given to the trunk in the place of the recorded ones.
        """
        own = self.episodes.frames
        targets = text_targets(
            dict(zip(self.episodes.ids.tolist(), self.episodes.traces, strict=True)),
            self.run.tensors.episodes,
            self.explainer.tokenizer,
            self.explainer.decoder.config.max_tokens,
            self.run.tensors.device,
        )
        tokens = targets.tokens[targets.of_frame[torch.from_numpy(own.reshape(-1))]]
        nats, counts = trace_losses(
            self.explainer.decoder,
            self._hidden(frames, world_tokens),
            tokens,
            self.explainer.tokenizer.pad,
        )
        return TextLosses(
            nats.double().cpu().numpy().reshape(own.shape),
            counts.double().cpu().numpy().reshape(own.shape),
        )

    def written(
        self,
        frames: Int[np.ndarray, "shares E"] | None = None,
        world_tokens: Int[np.ndarray, " N"] | None = None,
        temperature: float | None = None,
        seed: int = 0,
    ) -> list[Trace]:
        """Return the trace written at each frame, share by share; arguments as for `losses`."""
        hidden = self._hidden(frames, world_tokens)
        explainer = self.explainer
        return write_traces(explainer.decoder, explainer.tokenizer, hidden, temperature, seed)

    def _hidden(
        self,
        frames: Int[np.ndarray, "shares E"] | None,
        world_tokens: Int[np.ndarray, " N"] | None,
    ) -> TrunkHidden:
        seen = (self.episodes.frames if frames is None else frames).reshape(-1)
        tokens = None if world_tokens is None else world_tokens[seen]
        return hidden_states(self.run.policy, self.run.tensors, seen, tokens)


def written_counts(
    written: Sequence[Trace],
    episodes: EvaluatedEpisodes,
    truth: Sequence[Sequence[EventType]],
    kinds: Sequence[EventType],
) -> list[EventCounts]:
    """Compare what is written at each frame with what happened; one entry for each share.

    Args:
        written: share by share, as `ExplainedRun.written` returns it.
        episodes: that were explained.
        truth: the events of each of the E episodes.
        kinds: that are compared.
    """
    num_episodes = len(episodes.ids)
    return [
        count_events(
            [
                claimed_events(trace, told)
                for trace, told in zip(
                    written[start : start + num_episodes], episodes.instructions, strict=True
                )
            ],
            truth,
            kinds,
        )
        for start in range(0, len(written), num_episodes)
    ]
