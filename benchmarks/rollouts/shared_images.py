"""Camera images between an environment's process and the policy's, through shared memory.

A pipe copies an image four times and in pieces; here the environment writes it once and the policy
reads it once. Vectors are small and stay in the messages.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from jaxtyping import UInt8

from benchmarks.suite import Observation

_IMAGE_DIMS = 3
_Image = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class ImageBlock:
    """Room for the images of some frames, as both sides know it.

    Attributes:
        name: of the shared memory.
        shapes: of one frame's images, uint8, by their key.
        num_frames: how many frames fit in.
    """

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    num_frames: int

    def images(self, memory: SharedMemory, index: int) -> dict[str, _Image]:
        """Return the frame at a position, which lies in the memory itself."""
        frame_size = sum(math.prod(shape) for _, shape in self.shapes)
        offset = index * frame_size
        found = {}
        for key, shape in self.shapes:
            found[key] = np.ndarray(shape, np.uint8, memory.buf, offset)
            offset += math.prod(shape)
        return found


class SharedImages:
    """The policy's side, which owns the memory: it is freed however the environment's ends."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None
        self.block: ImageBlock | None = None

    def make_room(self, observation: Observation, num_frames: int) -> None:
        """Make sure that this many frames fit whose images have an observation's shapes."""
        shapes = image_shapes(observation)
        block = self.block
        if block is not None and block.shapes == shapes and block.num_frames >= num_frames:
            return
        self.close()
        frame_size = sum(math.prod(shape) for _, shape in shapes)
        if frame_size * num_frames == 0:
            return
        self._memory = SharedMemory(create=True, size=frame_size * num_frames)
        self.block = ImageBlock(self._memory.name, shapes, num_frames)

    def read(self, index: int) -> dict[str, _Image]:
        """Return a copy of the images at a position."""
        assert self._memory is not None, "images come after the command that makes room"
        assert self.block is not None, "images come after the command that makes room"
        views = self.block.images(self._memory, index)
        return {key: view.copy() for key, view in views.items()}

    def close(self) -> None:
        """Free the memory, if there is any."""
        if self._memory is not None:
            self._memory.unlink()
            self._memory.close()
        self._memory = self.block = None


class AttachedImages:
    """The environment's side, which writes into the memory that a command names."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None

    def write(self, block: ImageBlock, index: int, observation: Observation) -> Observation:
        """Put an observation's images at a position and return the rest of it.

        Raises:
            ValueError: its images are not of the shapes that the episode began with.
        """
        found = image_shapes(observation)
        if found != block.shapes:
            raise ValueError(
                f"the episode began with uint8 images of {_spelled(block.shapes)}, now the "
                f"simulator observes {_spelled(found)}"
            )
        memory = self._attach(block)
        images = block.images(memory, index)
        for key, view in images.items():
            view[...] = observation[key]
        return {key: value for key, value in observation.items() if key not in images}

    def _attach(self, block: ImageBlock) -> SharedMemory:
        if self._memory is None or self._memory.name != block.name:
            if self._memory is not None:
                self._memory.close()
            # The resource tracker is the owner's too, so that it takes no second note of the name.
            self._memory = SharedMemory(name=block.name)
        return self._memory


def image_shapes(observation: Mapping[str, np.ndarray]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return key and shape of an observation's uint8 images, in the order of their keys."""
    return tuple(
        (key, value.shape)
        for key, value in sorted(observation.items())
        if value.dtype == np.uint8 and value.ndim == _IMAGE_DIMS
    )


def _spelled(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    return ", ".join(f"{key} {list(shape)}" for key, shape in shapes) or "no kind"
