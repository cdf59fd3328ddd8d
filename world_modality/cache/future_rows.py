"""What lies ahead of a frame as vectors: the pooled embeddings there, and how they differ."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from world_modality.cache.frame_shapes import WindowShape
from world_modality.cache.mapped_rows import MappedRows


@dataclass(frozen=True)
class FutureRows:
    """The pooled embeddings of all frames (of the first view), read K steps ahead.

    Past the episode's end its last frame is read; who compares masks these steps.

    Attributes:
        embeddings: one vector a frame.
        last: the last frame of each frame's episode.
        order: the frame that is read instead of each, for a control whose future is shuffled in
            time; None for the frames themselves.
    """

    embeddings: Tensor | MappedRows
    last: Int[Tensor, " N"]
    order: Int[Tensor, " N"] | None = None

    @property
    def dim(self) -> int:
        """D."""
        return int(self.embeddings.shape[1])

    def shuffled(self, order: Int[Tensor, " N"]) -> "FutureRows":
        """Return the same vectors with the targets of another frame for each."""
        return replace(self, order=order)

    def on_host(self) -> "FutureRows":
        """Return what a thread beside the training reads, with the frames' numbers on the host."""
        order = None if self.order is None else self.order.cpu()
        return replace(self, last=self.last.cpu(), order=order)

    def ahead(self, frames: Int[Tensor, " B"], shape: WindowShape) -> Float[Tensor, "B K D"]:
        """Return `e_{t + stride·k}`, k = 1…K, as cached."""
        reached = self._reached(frames, shape)
        vectors: Tensor = self.embeddings[reached if self.order is None else self.order[reached]]
        return vectors

    def changes(self, frames: Int[Tensor, " B"], shape: WindowShape) -> Float[Tensor, "B K D"]:
        """Return `e_{t + stride·k} - e_t`, k = 1…K, in float32.

        Shuffled, it is the change that lies ahead of another frame, and so as large as a true one.
        """
        start = frames if self.order is None else self.order[frames]
        there: Tensor = self.embeddings[self._reached(start, shape)]
        return there.float() - self.embeddings[start].float()[:, None]

    def changes_over(self, num_steps: int) -> "ChangeRows":
        """Return the changes over so many frames as rows, of which statistics are made."""
        return ChangeRows(self, num_steps)

    def _reached(self, frames: Int[Tensor, " B"], shape: WindowShape) -> Int[Tensor, "B K"]:
        steps = torch.arange(1, shape.future_offset + 1, device=frames.device)
        reached = frames[:, None] + shape.future_stride * steps
        return torch.minimum(reached, self.last[frames][:, None])


@dataclass(frozen=True)
class ChangeRows:
    """`e_{t+num_steps} - e_t` of all frames t, made as they are asked for."""

    future: FutureRows
    num_steps: int

    def __len__(self) -> int:
        return len(self.future.embeddings)

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""
        return tuple(self.future.embeddings.shape)

    @property
    def device(self) -> torch.device:
        """Where the rows go."""
        return self.future.embeddings.device

    def __getitem__(self, index: Int[Tensor, " B"]) -> Shaped[Tensor, "B D"]:
        window = WindowShape(future_offset=1, future_stride=self.num_steps)
        return self.future.changes(index, window)[:, 0]
