"""What the shards of one precompute have to agree on, and how two that do not are told apart."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from world_modality.cache.contract import Cache
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


# A model is the same under another path.
NOT_COMPARED = ("encoder.name", "encoder.revision")
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class ShardPlan:
    """The cut into shards, and all that determines the embeddings.

    Attributes:
        num_shards: how many stretches the frames are cut into.
        batch_size: at whose multiples they are cut.
        identity: the job's.
        encoder: the encoder's record; of a fitted one, with the hash of its weights.
        compute: device and number format that the encoder computes with.
    """

    num_shards: int
    batch_size: int
    identity: dict[str, Any]
    encoder: dict[str, Any]
    compute: dict[str, str]

    @classmethod
    def of(cls, folder: Cache) -> "ShardPlan":
        """Read the plan in a folder's manifest.

        Raises:
            InvalidInputError: there is none.
        """
        try:
            return cls(**folder.manifest["plan"])
        except (KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{folder.manifest_path} has no plan of shards; {folder.mend()}"
            ) from error

    def content(self) -> dict[str, Any]:
        """Return it as a manifest holds it."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    @property
    def num_frames(self) -> int:
        """Number of frames N of all shards."""
        return int(self.identity["dataset"]["num_frames"])

    @property
    def embedding_dim(self) -> int:
        """D."""
        return int(self.encoder["embedding_dim"])

    def frames(self, index: int) -> range:
        """Return the frames of a shard."""
        return FrameShard(index, self.num_shards).frames(self.num_frames, self.batch_size)

    def require_same(self, other: "ShardPlan", folder: Path) -> None:
        """Check that another plan is this one.

        Args:
            other: what this command asks for, or what another shard says.
            folder: of the shards that have this plan.

        Raises:
            InvalidInputError: names each difference.
        """
        found, asked = _entries(self.content()), _entries(other.content())
        names = [name for name in {**found, **asked} if name not in NOT_COMPARED]
        differences = [
            f"{name} is {_shown(found, name)} there, {_shown(asked, name)} here"
            for name in names
            if found.get(name) != asked.get(name)
        ]
        if differences:
            raise InvalidInputError(
                f"{folder} holds shards that were made otherwise: {'; '.join(differences)}; give "
                f"the same flags (and the same kind of device) for every shard, or remove {folder} "
                "to begin anew"
            )


def _entries(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all values of nested objects by their dotted name."""
    entries: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        entries |= _entries(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return entries


def _shown(entries: Mapping[str, Any], name: str) -> str:
    text = json.dumps(entries[name]) if name in entries else "absent"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
