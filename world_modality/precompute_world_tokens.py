"""Turn a LeRobot dataset into the cache: embeddings, the codebook, one world token per frame."""

from dataclasses import dataclass
from pathlib import Path

from world_modality.cache.contract import Cache
from world_modality.encode.vision_encoders import EncoderRequest, Pooling, Precision, RandomVitSize
from world_modality.precompute.codebook_step import CodebookRequest, codebook_step
from world_modality.precompute.embedding_job import EmbeddingJob, Execution, PixelPcaRequest
from world_modality.precompute.inputs import PrecomputeInputs
from world_modality.precompute.shard_plan import FrameShard
from world_modality.precompute.steps import (
    PrecomputeResult,
    columns_step,
    embeddings_step,
    print_summary,
    shard_step,
)
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.codebook import VqBackend

STAGE = "precompute_world_tokens"


@dataclass(frozen=True)
class PrecomputeConfig:
    """Embed every frame of a LeRobot dataset, fit a codebook, and write the cache."""

    dataset_name: str
    """Repository id (HuggingFaceVLA/libero), or the name given to a local dataset."""
    dataset_root: Path | None = None
    """Folder of a local dataset; otherwise HF_LEROBOT_HOME, then the hub."""
    revision: str | None = None
    """Hub revision (tag, branch or commit) to pin the dataset to."""
    split: str = "train"
    """LeRobot datasets have one split, train."""
    cache_dir: Path = Path("cache")
    """The cache is written to `<cache_dir>/<dataset_name>`."""

    image_key: str | None = None
    """Camera to embed; may be left out where there is only one."""
    proprio_key: str = "observation.state"
    """Column of the robot's state; several joined by + are put one behind the other."""
    action_key: str = "action"
    """Column of the action."""
    episode_id_key: str = "episode_index"
    """Column that numbers the episodes."""
    task_index_key: str = "task_index"
    """Column that numbers the tasks."""
    environment_state_key: str | None = None
    """Column of the simulator's own state; observation.environment_state where it exists."""

    vision_model_name: str = "facebook/dinov2-base"
    """Hub name or local folder of a transformers vision model; pixel-pca (stand-in, needs no hub)
    or random-vit (untrained control)."""
    vision_revision: str | None = None
    """Hub revision of the vision model."""
    embedding_pooling: Pooling = "cls"
    """cls: the class token; mean: the mean over patch tokens."""
    trust_remote_code: bool = False
    """Run code that the vision model's repository brings along."""
    random_vit_size: RandomVitSize = "small"
    """Width and depth of random-vit."""
    random_vit_image_size: int = 224
    """Side of the image that random-vit sees, a multiple of 14."""
    pixel_pca_size: int = 32
    """pixel-pca averages images down to this many pixels a side."""
    pixel_pca_components: int = 192
    """pixel-pca's embedding dimension D."""
    pixel_pca_fit_frames: int = 8192
    """At most this many training frames are sampled to fit pixel-pca."""

    vq_num_tokens: int = 1024
    """V, the codebook's size."""
    l2_normalize: bool = False
    """Fit and assign in the space of unit-length embeddings."""
    vq_backend: VqBackend = "faiss"
    """Library of the k-means fit. torch runs on --device, starts with k-means++ on growing samples,
    reads in blocks what memory cannot hold, and assigns the tokens, too; else faiss does."""
    vq_iterations: int = 25
    """Lloyd iterations at most; for torch, on each of its samples."""
    vq_fit_frames: int = 65_536
    """At most this many training frames are sampled to fit the codebook; 0 is all."""
    val_fraction: float = 0.1
    """Share of the episodes held out for validation, in every later stage too."""
    split_seed: int = 0
    """Of the choice of held-out episodes."""
    seed: int = 0
    """Of the samples, the initial centroids, and random-vit's weights."""

    batch_size: int = 64
    """Frames a batch."""
    device: str = "auto"
    """auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …"""
    precision: Precision = "auto"
    """auto: fp16 autocast on a GPU, fp32 on a CPU."""
    shard: str | None = None
    """i/N: embed only the i-th (from 0) of N stretches of frames, into a folder beside the cache;
    the same command without it merges them. Under accelerate launch each process takes one."""

    @property
    def encoder_request(self) -> EncoderRequest:
        """The encoder asked for."""
        return EncoderRequest(
            name=self.vision_model_name,
            revision=self.vision_revision,
            pooling=self.embedding_pooling,
            precision=self.precision,
            trust_remote_code=self.trust_remote_code,
            seed=self.seed,
            random_vit_size=self.random_vit_size,
            random_vit_image_size=self.random_vit_image_size,
        )

    @property
    def pixel_pca_request(self) -> PixelPcaRequest:
        """Its settings, used where the encoder is pixel-pca."""
        return PixelPcaRequest(
            size=self.pixel_pca_size,
            num_components=self.pixel_pca_components,
            fit_frames=self.pixel_pca_fit_frames,
            seed=self.seed,
        )

    @property
    def codebook_request(self) -> CodebookRequest:
        """The codebook asked for."""
        return CodebookRequest(
            num_tokens=self.vq_num_tokens,
            l2_normalize=self.l2_normalize,
            backend=self.vq_backend,
            iterations=self.vq_iterations,
            fit_frames=self.vq_fit_frames,
            seed=self.seed,
        )

    @property
    def column_keys(self) -> dict[str, str | None]:
        """The columns asked for, by role."""
        return {
            "state": self.proprio_key,
            "action": self.action_key,
            "episode": self.episode_id_key,
            "task": self.task_index_key,
            "environment_state": self.environment_state_key,
        }

    def embedding_job(self, inputs: PrecomputeInputs, device: str) -> EmbeddingJob:
        """Return what is embedded, and how."""
        execution = Execution(self.batch_size, device)
        return EmbeddingJob(inputs, self.encoder_request, self.pixel_pca_request, execution)


def run(config: PrecomputeConfig) -> PrecomputeResult:
    """Write the cache; whatever an earlier run with the same settings has finished is kept."""
    _check(config)
    shard = None if config.shard is None else FrameShard.parse(config.shard)
    # Here, for it imports torch, without which --help answers sooner.
    from world_modality.system.process_group import ProcessGroup, is_launched

    if not is_launched():
        cache, job = open_job(config, config.device)
        return (
            _write_cache(config, cache, job) if shard is None else _write_shard(cache, job, shard)
        )
    with ProcessGroup.independent(config.device) as group:
        if shard is not None:
            raise InvalidInputError(
                f"--shard {config.shard}: under accelerate launch each process takes a shard by "
                "itself; leave --shard out, or start the shards without accelerate"
            )
        own_device = str(group.device) if config.device in ("auto", "cuda") else config.device
        cache, job = open_job(config, own_device)
        result = _write_shard(cache, job, FrameShard(group.index, group.num_processes))
        group.wait()
    # The first process merges the shards, and does the rest.
    return _write_cache(config, cache, job) if group.is_first else result


def _check(config: PrecomputeConfig) -> None:
    if config.split != "train":
        raise InvalidInputError(
            f"--split {config.split}: LeRobot datasets have one split, train; validation episodes "
            "are drawn from it by --val_fraction"
        )
    if config.batch_size < 1:
        raise InvalidInputError("--batch_size must be at least 1")


def open_job(config: PrecomputeConfig, device: str) -> tuple[Cache, EmbeddingJob]:
    """Check the dataset; return the cache to write, and what is embedded for it."""
    cache = Cache(config.cache_dir, config.dataset_name, config.split)
    inputs = PrecomputeInputs.read(
        config.dataset_name,
        dataset_root=config.dataset_root,
        revision=config.revision,
        image_key=config.image_key,
        keys=config.column_keys,
        split=(config.val_fraction, config.split_seed),
    )
    config.codebook_request.require_enough(inputs)
    print(
        f"{inputs.source.name}: {inputs.source.num_frames} frames of {inputs.image_key}, "
        f"{len(inputs.split.train)} training and {len(inputs.split.val)} validation episodes, "
        f"{len(inputs.source.tasks)} tasks"
    )
    return cache, config.embedding_job(inputs, device)


def _write_shard(cache: Cache, job: EmbeddingJob, shard: FrameShard) -> PrecomputeResult:
    speed = shard_step(cache, job, shard)
    if speed is None:
        print(f"shard {shard} was there already")
        return PrecomputeResult(cache, ("embeddings",), None)
    print(f"shard {shard}: {speed.num_frames} frames at {speed.frames_per_s:.1f} frames/s")
    return PrecomputeResult(cache, (), speed)


def _write_cache(config: PrecomputeConfig, cache: Cache, job: EmbeddingJob) -> PrecomputeResult:
    reused = []
    with cache.lock(STAGE):
        write_config(config, cache.folder / f"{cache.split}_{STAGE}_config.json")
        if columns_step(cache, job.inputs):
            reused.append("columns")
        speed = embeddings_step(cache, job)
        if speed is None:
            reused.append("embeddings")
        if codebook_step(cache, job.inputs, config.codebook_request, config.device):
            reused.append("codebook")
    result = PrecomputeResult(cache, tuple(reused), speed)
    print_summary(result)
    return result


def main() -> None:
    """Run the stage from the command line."""
    run_cli(PrecomputeConfig, run)


if __name__ == "__main__":
    main()
