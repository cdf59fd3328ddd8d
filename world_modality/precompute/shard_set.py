"""The shards of one precompute on the disk, which any number of processes and machines write.

`<cache>/<split>_shards/` holds the plan and, for `pixel-pca`, the fitted encoder; in a folder of
its own beside them each shard has its rows, its progress, its lock and its manifest. No two
processes write one file, so that a file system shared by machines has nothing to merge.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from world_modality.cache.contract import ARRAYS, PRECOMPUTE_COMMAND, Cache, sha256_of_json
from world_modality.cache.writer import CacheWriter
from world_modality.encode.pixel_pca import PixelPCA
from world_modality.encode.vision_encoders import VisionEncoder
from world_modality.precompute.cache_steps import require_space
from world_modality.precompute.embedding_job import EmbeddingJob
from world_modality.precompute.embedding_pass import PassSpeed, write_embeddings
from world_modality.precompute.shard_plan import FrameShard, ShardPlan
from world_modality.system.errors import InvalidInputError, UserError
from world_modality.system.output_lock import OutputLock

# The first shard fits `pixel-pca`; the others wait for it.
PLAN_WAIT_S = 3600.0
MERGE_BYTES = 1 << 26


class ShardFolder(Cache):
    """A folder with arrays and a manifest like a cache, and a remedy of its own."""

    def __init__(self, parent: Path, name: str, split: str, remedy: str) -> None:
        super().__init__(parent, name, split)
        self._remedy = remedy

    def mend(self, name: str = "embeddings") -> str:
        """Say what writes the array again."""
        return self._remedy


class ShardSet:
    """The shards beside a cache: a plan, and what is there of each.

    Args:
        cache: the cache that they become.
        plan: what they agree on.
    """

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
        batch_size = job.execution.batch_size
        FrameShard(0, num_shards).frames(job.inputs.source.num_frames, batch_size)
        root = _root(cache)
        with root.lock("plan", wait_s=PLAN_WAIT_S):
            found = cls.find(cache)
            if found is None:
                encoder = job.make_encoder()
                record, compute = encoder.record(), encoder.compute
                plan = ShardPlan(num_shards, batch_size, job.identity, record, compute)
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

        Args:
            job: what is asked for.
            num_shards: how many are asked for.
            compute: device and number format that would compute further ones, None where nothing
                is to be computed.

        Raises:
            InvalidInputError: names each difference.
        """
        asked = ShardPlan(
            num_shards,
            job.execution.batch_size,
            job.identity,
            self.plan.encoder,
            self.plan.compute if compute is None else compute,
        )
        self.plan.require_same(asked, self.folder)

    def encoder(self, job: EmbeddingJob) -> VisionEncoder:
        """Return the encoder of all shards: the job's own, or the one that was fitted for all."""
        if not job.is_fitted:
            return job.make_encoder()
        root = _root(self.cache)
        components, mean = root.load("pixel_pca_components"), root.load("pixel_pca_mean")
        return PixelPCA.from_arrays(self.plan.encoder, components, mean)

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
        require_space(shard, {"embeddings": (len(frames), self.plan.embedding_dim)})
        writer = CacheWriter(shard, "embeddings", {"plan": plan, "index": index})
        speed = write_embeddings(
            writer,
            job.inputs.source,
            job.inputs.image_key,
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
        """Copy the rows of all shards into the array `embeddings`, which the caller publishes.

        Goes on where an interrupted merge stopped.

        Returns:
            frames and seconds of all shards together.

        Raises:
            UserError: a shard is missing, being written, damaged, or not of this plan.
        """
        num_frames = seconds = 0.0
        done = writer.open("embeddings", (self.plan.num_frames, self.plan.embedding_dim))
        for index in range(self.plan.num_shards):
            with self.lock(index):
                section = self._copy(index, writer, done)
            num_frames += section["num_frames"]
            seconds += section["seconds"]
        return PassSpeed(int(num_frames), seconds)

    def remove(self) -> None:
        """Remove the shards, once the cache holds their rows."""
        shutil.rmtree(self.folder)

    def _copy(self, index: int, writer: CacheWriter, done: int) -> dict[str, Any]:
        """Copy a shard's rows from row `done` of the whole on; return what it says of itself."""
        shard, frames = self.shard(index), self.plan.frames(index)
        self.plan.require_same(ShardPlan.of(shard), self.folder)
        shape = shard.load("embeddings").shape
        if shape != (len(frames), self.plan.embedding_dim):
            raise InvalidInputError(
                f"{shard.array_path('embeddings')} has shape {list(shape)}, expected "
                f"[{len(frames)}, {self.plan.embedding_dim}]; {shard.mend()}"
            )
        row_bytes = self.plan.embedding_dim * np.dtype(ARRAYS["embeddings"].dtype).itemsize
        block = max(MERGE_BYTES // row_bytes, 1)
        for start in range(max(done, frames.start), frames.stop, block):
            # Mapped anew for every block: pages stay resident as long as their map.
            rows = np.load(shard.array_path("embeddings"), mmap_mode="r", allow_pickle=False)
            first = start - frames.start
            writer.write(start, {"embeddings": rows[first : first + block]})
        return dict(shard.manifest["shard"])

    def _is_whole(self, index: int) -> bool:
        shard = self.shard(index)
        if not shard.manifest_path.exists():
            return False
        self.plan.require_same(ShardPlan.of(shard), self.folder)
        try:
            shard.load("embeddings")
        except UserError as error:
            print(f"shard {index} is written again: {error}")
            shard.manifest_path.unlink()
            return False
        return True


def _root(cache: Cache) -> ShardFolder:
    name = f"{cache.split}_shards"
    remedy = f"remove {cache.folder / name}, and write the shards anew"
    return ShardFolder(cache.folder, name, cache.split, remedy)
