"""A policy asked about frames of many episodes: what it saw of each, and what it does next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from world_modality.acting.action_chunks import ChunkExecution
from world_modality.acting.episode_memory import EncodedFrame, EpisodeMemory
from world_modality.acting.frame_encoder import FrameEncoder, filled_groups, threads_of
from world_modality.acting.world_input import Tokens, WorldInput
from world_modality.policy.config import PolicyConfig


@dataclass(frozen=True)
class ActingPolicy:
    """Encoder, world input, network and execution of one policy, whoever runs its loop.

    Attributes:
        config: of the network.
        encoder: of the frames; its group size is that of the network, too.
        world: which world tokens are read; None for a policy that reads none.
        execution: how much of a predicted chunk is executed.
        device: where the network runs.
        predict_chunks: takes what `WorldPolicy.forward` takes, and returns chunks [B, H, A] in the
            dataset's units.
    """

    config: PolicyConfig
    encoder: FrameEncoder
    world: WorldInput | None
    execution: ChunkExecution
    device: torch.device
    predict_chunks: Callable[..., Tensor] = field(repr=False)

    @property
    def n_action_steps(self) -> int:
        """Actions that a question is answered with."""
        return self.execution.n_action_steps

    @cached_property
    def observed_lags(self) -> tuple[int, ...]:
        """Those of the context's frames, and of the frames whose world tokens are needed."""
        return tuple(sorted({*self.config.window.context_lags, *self._token_lags}))

    @property
    def _token_lags(self) -> frozenset[int]:
        return frozenset() if self.world is None else self.world.observed_lags

    def observe(
        self,
        seen: Sequence[tuple[EpisodeMemory, int]],
        views: Sequence[Sequence[np.ndarray]],
        states: Sequence[np.ndarray],
    ) -> None:
        """Encode newly observed frames into the memories of their episodes.

        Args:
            seen: the memory and the number of each frame.
            views: for each view, the uint8 [H, W, 3] images of all frames, which have one size.
            states: float32 [S] of each frame, in raw units.

        Raises:
            InvalidInputError: an embedding is not finite in float16.
        """
        embeddings = self.encoder.embed(views)
        for (memory, number), embedding, state in zip(
            seen, self.encoder.read(embeddings), states, strict=True
        ):
            memory.frames[number] = EncodedFrame(embedding, state)
        if self._token_lags:
            found = self.encoder.tokens(embeddings)
            tokens: list[Tokens] = found.tolist() if found.ndim == 1 else list(found)
            for (memory, number), token in zip(seen, tokens, strict=True):
                memory.tokens[number] = token

    def predict(
        self, memories: Sequence[EpisodeMemory], steps: Sequence[int]
    ) -> Float32[np.ndarray, "n H A"]:
        """Predict the action chunk of each episode at its step, in the dataset's units.

        Args:
            memories: of the episodes; the frames `observed_lags` before the step are in them.
            steps: the frame of each that is acted in.
        """
        config, window = self.config, self.config.window
        asked = list(zip(memories, steps, strict=True))
        contexts = [memory.context(step, window.context_lags) for memory, step in asked]
        inputs = [
            np.stack([[frame.embedding for frame in context] for context in contexts]),
            np.stack([[frame.state for frame in context] for context in contexts]),
            np.zeros((len(asked), *config.world_axis), dtype=np.int64)
            if self.world is None
            else np.array([memory.world_tokens(step) for memory, step in asked], dtype=np.int64),
        ]
        if config.reads_language:
            instructions = [memory.instruction for memory in memories]
            assert all(one is not None for one in instructions), "the policy reads language"
            inputs.append(np.array(instructions))
        chunks = np.empty(
            (len(asked), window.chunk_size, config.frame.action_dim), dtype=np.float32
        )
        group_size = self.encoder.group_size
        with threads_of(group_size):
            for chosen in filled_groups(len(asked), group_size):
                tensors = [torch.from_numpy(array[chosen]).to(self.device) for array in inputs]
                chunks[chosen] = self.predict_chunks(*tensors).cpu().numpy()
        return chunks

    def act(
        self, memories: Sequence[EpisodeMemory], steps: Sequence[int]
    ) -> list[Float32[np.ndarray, "n A"]]:
        """Return the next actions of each episode, and forget what no later question needs."""
        answers = []
        for memory, step, chunk in zip(memories, steps, self.predict(memories, steps), strict=True):
            memory.chunks[step] = chunk
            answers.append(self.execution.actions(memory.chunks, step))
            memory.chunks = self.execution.kept(memory.chunks, step)
            self.forget(memory, step + self.n_action_steps)
        return answers

    def forget(self, memory: EpisodeMemory, next_step: int) -> None:
        """Drop what no question from a frame on needs of an episode."""
        memory.forget_before(next_step, self.config.window.context_lags, self._token_lags)
