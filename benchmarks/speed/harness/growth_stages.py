"""One stage at one size, measured in a process of its own."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.harness.codebook_rows import write_rows
from benchmarks.speed.harness.drawn_dataset import CAMERA, draw_dataset
from benchmarks.speed.harness.synthetic_training import (
    open_trainer,
    synthetic_train_config,
    write_synthetic_cache,
)
from benchmarks.speed.harness.turns import peak_resident_bytes, reset_peak, resident_bytes
from world_modality.encode.random_vit import RandomVitSize
from world_modality.policy.predictions import predict
from world_modality.precompute.steps import StoredRows
from world_modality.precompute_world_tokens import PrecomputeConfig
from world_modality.precompute_world_tokens import run as precompute
from world_modality.tokens.codebook import CodebookFlags
from world_modality.tokens.kmeans import KMeans
from world_modality.training.trainer import Trainer

# What the stages import when they run; it is to be there before they are measured.
LAZILY_IMPORTED = (
    *("faiss", "pandas", "sklearn.cluster", "torch._dynamo", "torchvision"),
    *("transformers.models.dinov2.modeling_dinov2", "world_modality.source.lerobot_adapter"),
    "world_modality.encode.transformers_encoder",
)
NUM_TOKENS = 64
NUM_LAYERS = 3
EMBEDDING_DIM = 64
TRAINING_BATCH = 128
IMAGE_SIZE = 64
VIT_IMAGE_SIZE = 28
VIT_SIZES: dict[int, RandomVitSize] = {192: "tiny", 384: "small", 768: "base"}
REPEATS = 3


@dataclass(frozen=True)
class Case:
    """A stage at a size.

    Attributes:
        stage: one of `STAGES`.
        frames: N.
        width: of the encoder, the embedding or the trunk, whichever the stage computes with.
    """

    stage: str
    frames: int
    width: int


@dataclass(frozen=True)
class Measured:
    """What it took.

    Attributes:
        seconds: the median over repeats.
        ended_s: wall-clock time when the last repeat ended.
        peak_bytes: resident memory that the stage added at its peak.
    """

    seconds: float
    began_s: float
    ended_s: float
    peak_bytes: int


def embedding_pass(case: Case, folder: Path) -> Callable[[], float | None]:
    """Prepare the precompute stage with an untrained ViT on drawn PNG images; times its pass."""
    root = folder / "dataset"
    draw_dataset(root, case.frames, IMAGE_SIZE)

    def run() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as cache_dir:
            config = PrecomputeConfig(
                dataset_name="bench/growth",
                dataset_root=root,
                image_key=CAMERA,
                cache_dir=Path(cache_dir),
                vision_model_name="random-vit",
                random_vit_size=VIT_SIZES[case.width],
                random_vit_image_size=VIT_IMAGE_SIZE,
                vq_num_tokens=2,
                val_fraction=0.5,
                device="cpu",
            )
            speed = precompute(config).speed
        assert speed is not None
        return speed.num_frames / speed.frames_per_s

    return run


def vq_fit(case: Case, folder: Path) -> Callable[[], float | None]:
    """Prepare the torch fit to all rows of a mapped array."""
    path = folder / "rows.npy"
    write_rows(path, "episodes", case.frames, case.width)
    rows = StoredRows(path, np.arange(case.frames))

    def run() -> None:
        KMeans.fit(CodebookFlags(vq_num_tokens=NUM_TOKENS, vq_backend="torch"), rows, "cpu")

    return run


def vq_assignment(case: Case, folder: Path) -> Callable[[], float | None]:
    """Prepare faiss's assignment of all rows of a mapped array, in the stage's blocks."""
    path = folder / "rows.npy"
    write_rows(path, "episodes", case.frames, case.width)
    rows = StoredRows(path, np.arange(case.frames))
    codebook = KMeans(rows[np.arange(NUM_TOKENS)].astype(np.float32), l2_normalize=False)

    def run() -> None:
        for indices in np.array_split(np.arange(case.frames), -(-case.frames // 2_048)):
            codebook.encode(rows[indices])

    return run


def _trainer(case: Case, folder: Path) -> Trainer:
    cache = write_synthetic_cache(folder, case.frames, EMBEDDING_DIM)
    config = synthetic_train_config(
        d_model=case.width,
        n_layers=NUM_LAYERS,
        batch_size=TRAINING_BATCH,
        device="cpu",
    )
    return open_trainer(cache, config)


def training_step(case: Case, folder: Path) -> Callable[[], float | None]:
    """Prepare arm C's optimiser step."""
    epoch = _trainer(case, folder).epoch(0)

    def run() -> None:
        next(epoch)

    return run


def offline_evaluation(case: Case, folder: Path) -> Callable[[], float | None]:
    """Prepare the predictions of arm C at every frame, as `eval_offline` makes them."""
    trainer = _trainer(case, folder)

    def run() -> None:
        predict(trainer.policy, trainer.tensors, np.arange(case.frames))

    return run


STAGES = {
    stage.__name__: stage
    for stage in (embedding_pass, vq_fit, vq_assignment, training_step, offline_evaluation)
}


def measure(case: Case) -> Measured:
    """Prepare a case, warm it up, and measure it."""
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        run = STAGES[case.stage](case, Path(folder))
        before = resident_bytes()
        reset_peak()
        run()
        seconds = []
        first = time.time()
        for _ in range(REPEATS):
            began = time.perf_counter()
            of_pass = run()
            seconds.append(time.perf_counter() - began if of_pass is None else of_pass)
        ended = time.time()
    return Measured(float(np.median(seconds)), first, ended, peak_resident_bytes() - before)
