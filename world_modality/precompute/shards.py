"""The shards of one precompute, which any number of processes and machines write.

`<cache>/<split>_shards/` holds the plan, all that the shards have to agree on, and, for a fitted
encoder, its arrays; in a folder of its own beside them each shard has its rows, its progress, its
lock and its manifest. No two processes write one file, so that a file system shared by machines
has nothing to merge.
"""

import json
import math
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_modality.cache.contract import ARRAYS, PRECOMPUTE_COMMAND, Cache, sha256_of_json
from world_modality.cache.manifest_differences import differences
from world_modality.cache.writer import CacheWriter
from world_modality.encode.observation_encoder import ObservationEncoder, load_components
from world_modality.precompute.cache_steps import require_space
from world_modality.precompute.embedding_pass import (
    EmbeddingJob,
    PassSpeed,
    array_shapes,
    write_embeddings,
)
from world_modality.system.errors import InvalidInputError, UserError
from world_modality.system.output_lock import OutputLock

# A model is the same under another path.
NOT_COMPARED = ("encoder.name", "encoder.revision")
# The first shard fits a fitted encoder; the others wait for it.
PLAN_WAIT_S = 3600.0
MERGE_BYTES = 1 << 26


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


@dataclass(frozen=True)
class ShardPlan:
    """The cut into shards, and all that determines the embeddings.

    Attributes:
        num_shards: how many stretches the frames are cut into.
        batch_size: at whose multiples they are cut.
        identity: the job's.
        encoder: the encoder's record; of a fitted one, with the hash of its weights.
        compute: device and number format that the encoder computes with.
        observation: the manifest's section of that name; None where no cells are stored.
    """

    num_shards: int
    batch_size: int
    identity: dict[str, Any]
    encoder: dict[str, Any]
    compute: dict[str, str]
    observation: dict[str, Any] | None = None

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
        if self.observation is None:
            del content["observation"]
        return content

    @property
    def num_frames(self) -> int:
        """Number of frames N of all shards."""
        return int(self.identity["dataset"]["num_frames"])

    def shapes(self, num_frames: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of so many frames."""
        section, cell_shape = self.observation, None
        if section is not None:
            cell_shape = (int(section["num_vectors"]), int(section["embedding_dim"]))
        return array_shapes(num_frames, int(self.encoder["embedding_dim"]), cell_shape)

    def frames(self, index: int) -> range:
        """Return the frames of a shard."""
        return FrameShard(index, self.num_shards).frames(self.num_frames, self.batch_size)

    def require_same(self, other: "ShardPlan", folder: Path) -> None:
        """Check that another plan is this one.

        Raises:
            InvalidInputError: names each difference.
        """
        found = differences(self.content(), other.content(), NOT_COMPARED)
        if found:
            raise InvalidInputError(
                f"{folder} holds shards that were made otherwise: {'; '.join(found)}; give "
                f"the same flags (and the same kind of device) for every shard, or remove {folder} "
                "to begin again"
            )


class ShardFolder(Cache):
    """A folder with arrays and a manifest like a cache, and a remedy of its own."""

    def __init__(self, parent: Path, name: str, split: str, remedy: str) -> None:
        super().__init__(parent, name, split)
        self._remedy = remedy

    def mend(self, name: str = "embeddings") -> str:
        """Say what writes the array again."""
        return self._remedy


class ShardSet:
    """The shards beside a cache: a plan, and what is there of each."""

    def __init__(self, cache: Cache, plan: ShardPlan) -> None:
        self.cache = cache
        self.plan = plan

    @classmethod
    def find(cls, cache: Cache) -> "ShardSet | None":
        """Return the shards beside a cache, None where there are none.

        Raises:
            InvalidInputError: their plan cannot be read.
        """
        root = _root(cache)
        return cls(cache, ShardPlan.of(root)) if root.manifest_path.exists() else None

    @classmethod
    def join(cls, cache: Cache, job: EmbeddingJob, num_shards: int) -> "ShardSet":
        """Find the shards that a job belongs to; the first one there writes the plan.

        Raises:
            InvalidInputError: the shards there are others, or those of another job.
        """
        batch_size = job.batch_size
        FrameShard(0, num_shards).frames(job.inputs.source.num_frames, batch_size)
        root = _root(cache)
        with root.lock("plan", wait_s=PLAN_WAIT_S):
            found = cls.find(cache)
            if found is None:
                encoder = job.make_encoder()
                plan = ShardPlan(
                    num_shards,
                    batch_size,
                    job.identity,
                    encoder.record(),
                    encoder.encoder.compute,
                    encoder.observation_record(job.inputs.image_keys),
                )
                writer = CacheWriter(root, "plan", plan.content())
                for name, array in encoder.arrays.items():
                    writer.put(name, array)
                writer.publish({"plan": plan.content()})
                found = cls(cache, plan)
        found.require(job, num_shards, job.compute)
        return found

    @property
    def folder(self) -> Path:
        """Where they are."""
        return _root(self.cache).folder

    def is_of(self, job: EmbeddingJob) -> bool:
        """Say whether they hold what a job makes."""
        return sha256_of_json(self.plan.identity) == sha256_of_json(job.identity)

    def require(
        self, job: EmbeddingJob, num_shards: int, compute: dict[str, str] | None = None
    ) -> None:
        """Check that a job is the one of these shards.

        `compute` is what would compute further ones, None where none is to be computed.

        Raises:
            InvalidInputError: names each difference.
        """
        asked = ShardPlan(
            num_shards,
            job.batch_size,
            job.identity,
            self.plan.encoder,
            self.plan.compute if compute is None else compute,
            self.plan.observation,
        )
        self.plan.require_same(asked, self.folder)

    def encoder(self, job: EmbeddingJob) -> ObservationEncoder:
        """Return the encoder of all shards: what is fitted was fitted once, for all of them."""
        root, fitted = _root(self.cache), job.flags.fitted_kind
        arrays = {name: root.load(name) for name in job.encoder_arrays}
        encoder = job.built if fitted is None else fitted.load(self.plan.encoder, arrays)
        section = self.plan.observation
        components = None if section is None else load_components(section, arrays, encoder)
        return job.observation_encoder(encoder, components)

    def shard(self, index: int) -> ShardFolder:
        """Return the folder of a shard."""
        name = f"{index}-of-{self.plan.num_shards}"
        command = (
            f"run {PRECOMPUTE_COMMAND} --dataset_name {self.cache.dataset_name} "
            f"--cache_dir {self.cache.cache_dir} … --shard {index}/{self.plan.num_shards}"
        )
        return ShardFolder(self.folder, name, self.cache.split, command)

    def lock(self, index: int) -> OutputLock:
        """Return the lock of a shard's one writer."""
        return self.shard(index).lock("embeddings")

    def write(self, index: int, job: EmbeddingJob) -> PassSpeed | None:
        """Embed the frames of a shard; return how fast, None where they are there already.

        Raises:
            InvalidInputError: another process is writing it.
        """
        with self.lock(index):
            return None if self._is_whole(index) else self._write(index, job)

    def _write(self, index: int, job: EmbeddingJob) -> PassSpeed:
        shard, frames = self.shard(index), self.plan.frames(index)
        plan = self.plan.content()
        require_space(shard, self.plan.shapes(len(frames)))
        writer = CacheWriter(shard, "embeddings", {"plan": plan, "index": index})
        speed = write_embeddings(
            writer,
            job.inputs.source,
            job.inputs.image_keys,
            self.encoder(job),
            self.plan.batch_size,
            frames,
        )
        speeds = {"num_frames": speed.num_frames, "seconds": speed.seconds}
        writer.publish({"plan": plan, "shard": {"index": index, **speeds}})
        return speed

    def write_missing(self, job: EmbeddingJob) -> None:
        """Name the shards that are not finished, with the command of each, and finish them here.

        Raises:
            InvalidInputError: one is being written elsewhere, or was to be computed on another
                kind of device.
        """
        missing = []
        for index in range(self.plan.num_shards):
            shard = self.shard(index)
            if not shard.manifest_path.exists():
                missing.append(index)
                print(f"shard {index}/{self.plan.num_shards} is missing; {shard.mend()}")
        if missing:
            self.require(job, self.plan.num_shards, job.compute)
            print(f"writing {len(missing)} of {self.plan.num_shards} shards here")
        for index in missing:
            self.write(index, job)

    def merge_into(self, writer: CacheWriter) -> PassSpeed:
        """Copy the rows of all shards into the cache's arrays, which the caller publishes.

        Goes on where an interrupted merge stopped.

        Returns:
            frames and seconds of all shards together.

        Raises:
            UserError: a shard is missing, being written, damaged, or not of this plan.
        """
        num_frames = seconds = 0.0
        shapes = self.plan.shapes(self.plan.num_frames)
        done = {name: writer.open(name, shape) for name, shape in shapes.items()}
        for index in range(self.plan.num_shards):
            with self.lock(index):
                for name, num_rows in done.items():
                    self._copy(index, name, writer, num_rows)
                section = self.shard(index).manifest["shard"]
            num_frames += section["num_frames"]
            seconds += section["seconds"]
        return PassSpeed(int(num_frames), seconds)

    def remove(self) -> None:
        """Remove the shards, once the cache holds their rows."""
        shutil.rmtree(self.folder)

    def _copy(self, index: int, name: str, writer: CacheWriter, done: int) -> None:
        """Copy a shard's rows of an array from row `done` of the whole on."""
        shard, frames = self.shard(index), self.plan.frames(index)
        self.plan.require_same(ShardPlan.of(shard), self.folder)
        shape, expected = shard.load(name).shape, self.plan.shapes(len(frames))[name]
        if shape != expected:
            raise InvalidInputError(
                f"{shard.array_path(name)} has shape {list(shape)}, expected {list(expected)}; "
                f"{shard.mend()}"
            )
        row_bytes = math.prod(expected[1:]) * np.dtype(ARRAYS[name].dtype).itemsize
        block = max(MERGE_BYTES // row_bytes, 1)
        for start in range(max(done, frames.start), frames.stop, block):
            # Mapped again for every block: pages stay resident as long as their map.
            rows = np.load(shard.array_path(name), mmap_mode="r", allow_pickle=False)
            first = start - frames.start
            writer.write(start, {name: rows[first : first + block]})

    def _is_whole(self, index: int) -> bool:
        shard = self.shard(index)
        if not shard.manifest_path.exists():
            return False
        self.plan.require_same(ShardPlan.of(shard), self.folder)
        try:
            for name in self.plan.shapes(0):
                shard.load(name)
        except UserError as error:
            print(f"shard {index} is written again: {error}")
            shard.manifest_path.unlink()
            return False
        return True


def _root(cache: Cache) -> ShardFolder:
    name = f"{cache.split}_shards"
    remedy = f"remove {cache.folder / name}, and write the shards again"
    return ShardFolder(cache.folder, name, cache.split, remedy)
