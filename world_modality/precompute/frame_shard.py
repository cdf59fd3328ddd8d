"""A stretch of a dataset's frames that one process embeds."""

import re
from dataclasses import dataclass

from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class FrameShard:
    """Number `index` (from 0) of `num_shards` stretches of frames, all about equally long."""

    index: int
    num_shards: int

    @classmethod
    def parse(cls, text: str) -> "FrameShard":
        """Read `i/N`, as `--shard` has it.

        Raises:
            InvalidInputError: not of that form, or i is not below N.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise InvalidInputError(
                f"--shard {text!r} is not i/N with i from 0 to N-1, as in --shard 0/4"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.num_shards}"

    def frames(self, num_frames: int, batch_size: int) -> range:
        """Return its frames: whole batches of a run over all, whose result may depend on them.

        Raises:
            InvalidInputError: there are fewer batches than shards.
        """
        num_batches = -(-num_frames // batch_size)
        if num_batches < self.num_shards:
            raise InvalidInputError(
                f"{num_frames} frames are {num_batches} batches of {batch_size}, too few for "
                f"{self.num_shards} shards; use at most {num_batches}, or lower --batch_size"
            )
        first, end = (num_batches * i // self.num_shards for i in (self.index, self.index + 1))
        return range(first * batch_size, min(end * batch_size, num_frames))
