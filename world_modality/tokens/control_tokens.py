"""What a control arm reads instead of `w_t`, and what it is asked to predict."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from world_modality.arms import CONTROLS, DUMMY_TOKEN, ControlName, WorldTarget
from world_modality.cache.frame_shapes import WindowShape
from world_modality.cache.frame_tensors import Batch, FrameTensors
from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError

# Keeps these draws apart from those of the data order, which are seeded by the same numbers.
_STREAM = 0x70CE


class OtherEpisodes:
    """Training frames, among which one of the same task and of another episode is drawn.

    Another episode, so that nothing of a frame's own future is read. `pool` ascends.
    """

    def __init__(self, episodes: Episodes, pool: Int[np.ndarray, " M"]) -> None:
        self._of_frame = episodes.of_frame
        tasks = episodes.tasks[self._of_frame[pool]]
        self._pool = pool[np.argsort(tasks, kind="stable")]
        sorted_tasks = np.sort(tasks)
        self._task_first = np.searchsorted(sorted_tasks, episodes.tasks, "left")
        self._task_count = np.searchsorted(sorted_tasks, episodes.tasks, "right") - self._task_first
        # Where in the sorted pool each episode's own frames end, and how many they are.
        self._own_count = np.bincount(self._of_frame[pool], minlength=len(episodes))
        place = np.zeros(len(episodes), dtype=np.int64)
        place[self._of_frame[self._pool]] = np.arange(1, len(pool) + 1)
        self._own_end = np.where(self._own_count > 0, place, self._task_first)
        lonely = self._task_count <= self._own_count
        if lonely.any():
            raise InvalidInputError(
                f"--token_control shuffled reads tokens of other training episodes of a task, but "
                f"task {np.unique(episodes.tasks[lonely]).tolist()} has none"
            )

    def draw(
        self, frames: Int[np.ndarray, " B"], rng: np.random.Generator
    ) -> Int[np.ndarray, " B"]:
        """Return for each frame one of the pool, uniform over those that may be read."""
        episode = self._of_frame[frames]
        first, count = self._task_first[episode], self._task_count[episode]
        steps = rng.integers(0, count - self._own_count[episode])
        return self._pool[first + (self._own_end[episode] - first + steps) % count]


class TokenControl:
    """What one arm reads instead of `w_t`, and what it is asked to predict.

    Args:
        name: the control; `none` changes nothing.
        tensors: the recorded frames.
        train_frames: `shuffled` draws among these alone, in evaluation too.
        seed: of what is drawn.
        own_tokens: of all frames, what `privileged` reads instead of the recorded tokens.
        oracle_target: what an oracle reads of the future; None where that is no part of WORLD.
    """

    def __init__(
        self,
        name: ControlName,
        tensors: FrameTensors,
        train_frames: Int[np.ndarray, " M"],
        seed: int,
        own_tokens: Int[np.ndarray, " N *W"] | None = None,
        oracle_target: WorldTarget | None = "token",
    ) -> None:
        if (own_tokens is not None) != (name == "privileged"):
            raise ValueError(f"control {name} got {'no' if own_tokens is None else 'own'} tokens")
        self.name = name
        self._oracle_target = oracle_target
        self._tensors = tensors
        self._seed = seed
        self._others = OtherEpisodes(tensors.episodes, train_frames) if name == "shuffled" else None
        self._targets = _shuffled_in_time(tensors, seed) if name == "placebo" else tensors
        self._read = tensors if own_tokens is None else _with_tokens(tensors, own_tokens)

    @property
    def reads_own_token(self) -> bool:
        """Whether what the arm reads depends on the present frame's own token."""
        if self.name == "oracle" and self._oracle_target not in (None, "token"):
            return False
        return self.name == "none" or CONTROLS[self.name].own_token

    @property
    def _leaves_tokens(self) -> bool:
        """Whether the tokens that are read are the recorded ones, or none."""
        is_oracle = self.name == "oracle"
        return self.name in ("none", "placebo") or (
            is_oracle and self._oracle_target not in ("token", "change_token")
        )

    def ahead(
        self, batches: Sequence[Int[Tensor, " _"]], shape: WindowShape
    ) -> Iterator[Int[Tensor, " _"]]:
        """Yield these batches of frames, each to be gathered before the next is asked for."""
        return self._targets.ahead(batches, shape)

    def gather(
        self,
        frames: Int[Tensor, " B"],
        shape: WindowShape,
        step: int,
        part: slice = slice(None),
    ) -> Batch:
        """Gather a training batch as the control wants it; draws depend on seed and step alone.

        Args:
            frames: of the whole batch.
            shape: of the windows.
            step: optimiser steps made before.
            part: only these rows of the batch, the same as they are in the whole.
        """
        rows = frames[part]
        # What was read ahead is known by the very tensor of the whole batch.
        batch = self._targets.gather(frames if len(rows) == len(frames) else rows, shape)
        if self._leaves_tokens:
            return batch
        return dataclasses.replace(batch, world_tokens=self._inputs(frames, shape, step)[part])

    def evaluation_tokens(
        self, frames: Int[np.ndarray, " M"], shape: WindowShape
    ) -> Int[np.ndarray, " M *RW"] | None:
        """Return what the arm reads at these frames; None where it reads their own tokens."""
        if self._leaves_tokens:
            return None
        return self._inputs(torch.from_numpy(frames), shape, 0).cpu().numpy()

    def _inputs(
        self, frames: Int[Tensor, " B"], shape: WindowShape, step: int
    ) -> Int[Tensor, " B *RW"]:
        """Return other tokens with those of their own past, or one code everywhere."""
        tensors = self._tensors
        if self._others is not None:  # the only control that needs the frames on the host
            rng = np.random.default_rng([self._seed, _STREAM, step])
            drawn = torch.from_numpy(self._others.draw(frames.cpu().numpy(), rng))
            return tensors.tokens_read(drawn.to(tensors.device), shape)
        own = frames.to(tensors.device)
        if self.name == "oracle" and self._oracle_target == "change_token":
            assert tensors.change_tokens is not None, "change tokens were not asked for"
            return tensors.change_tokens[own].long()
        if self.name == "oracle":
            ahead = shape.future_offset * shape.future_stride
            return tensors.tokens_read(tensors.frames_ahead(own, ahead), shape)
        if self.name == "privileged":
            return self._read.tokens_read(own, shape)
        return torch.full_like(tensors.tokens_read(own, shape), DUMMY_TOKEN)


def _shuffled_in_time(tensors: FrameTensors, seed: int) -> FrameTensors:
    """Return the same frames with what lies ahead in each episode in another order, drawn once."""
    rng = np.random.default_rng([seed, _STREAM])
    episodes = tensors.episodes
    order = np.arange(episodes.num_frames)
    for start, end in zip(episodes.starts, episodes.ends, strict=True):
        order[start:end] = start + rng.permutation(end - start)
    return tensors.shuffled_in_time(order)


def _with_tokens(tensors: FrameTensors, tokens: Int[np.ndarray, " N *W"]) -> FrameTensors:
    """Return the same frames with other world tokens."""
    other = copy.copy(tensors)
    other.world_tokens = torch.from_numpy(tokens).to(tensors.device)
    return other
