"""What is embedded with what, and one pass of an encoder over the frames.

Decoding runs ahead in a thread, and rows go to the cache.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int, UInt8
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from world_modality.cache.writer import CacheWriter
from world_modality.encode.embedding_components import EmbeddingComponents
from world_modality.encode.fitted_encoder import FittedEncoder
from world_modality.encode.observation_encoder import (
    ObservationEmbeddings,
    ObservationEncoder,
    ObservationFlags,
)
from world_modality.encode.vision_encoders import VisionEncoder, build_encoder
from world_modality.precompute.inputs import PrecomputeInputs
from world_modality.source.frame_decoding import view_blocks
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError

QUEUED_BLOCKS = 4
# Training frames whose cells the components are fitted to. Each is decoded and embedded once more.
COMPONENT_FIT_FRAMES = 4_096
# Putting rows on the disk costs some 10 ms; a kill loses at most this much work.
FLUSH_INTERVAL_S = 0.5

Block = TypeVar("Block")
# A block of frames as their images of each view.
Views = tuple[UInt8[np.ndarray, "B _ _ 3"], ...]


@dataclass(frozen=True)
class EmbeddingJob:
    """The frames of a dataset, the encoder asked for, and how it runs.

    It is known before an encoder is fitted or a frame decoded. `batch_size` and `device` are no
    part of what the embeddings are.
    """

    inputs: PrecomputeInputs
    flags: ObservationFlags
    batch_size: int
    device: str

    @cached_property
    def built(self) -> VisionEncoder:
        """The encoder where it needs no dataset."""
        from world_modality.system.device import resolve_device

        return build_encoder(self.flags, resolve_device(self.device))

    @property
    def stores_cells(self) -> bool:
        """Whether more is kept of a frame than one pooled vector."""
        flags = self.flags
        several = len(self.inputs.image_keys) > 1 or flags.embedding_grid > 1
        return several or flags.embedding_components is not None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that determines the embeddings."""
        fitted = self.flags.fitted_kind
        if fitted is not None:
            own = fitted.settings(self.flags)
            settings = {"kind": fitted.kind, **own, "split": self.inputs.split_section}
        else:
            # A model is the same under another path, and whatever the device that ran it.
            record = self.built.record()
            settings = {k: v for k, v in record.items() if k not in ("name", "revision")}
        identity = {"dataset": self.inputs.dataset_section, "encoder": settings}
        if self.stores_cells:
            identity["observation"] = self._observation_settings()
        return identity

    def _observation_settings(self) -> dict[str, Any]:
        components = None
        if self.flags.embedding_components is not None:
            components = {
                "num_components": self.flags.embedding_components,
                "fit_frames": COMPONENT_FIT_FRAMES,
                "seed": self.flags.seed,
                "split": self.inputs.split_section,
            }
        return {"grid_size": self.flags.embedding_grid, "components": components}

    @property
    def encoder_arrays(self) -> tuple[str, ...]:
        """Names of the arrays that the encoder and the components consist of."""
        fitted = self.flags.fitted_kind
        own = () if fitted is None else fitted.array_names
        has_components = self.flags.embedding_components is not None
        return (*own, *(EmbeddingComponents.array_names if has_components else ()))

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that it makes."""
        cells = ("view_embeddings",) if self.stores_cells else ()
        return ("embeddings", *cells, *self.encoder_arrays)

    @property
    def compute(self) -> dict[str, str]:
        """Device and number format that the encoder computes with."""
        return dict((self.flags.fitted_kind or self.built).compute)

    def check(self) -> None:
        """Refuse what the first frame shows to be impossible.

        Raises:
            InvalidInputError: a grid or a number of components that the encoder cannot give.
        """
        self.flags.check_observation()
        grid_size, num_components = self.flags.embedding_grid, self.flags.embedding_components
        fitted = self.flags.fitted_kind
        if fitted is not None:
            if grid_size > 1 and fitted.encode_grid is FittedEncoder.encode_grid:
                raise fitted.no_map(grid_size)
            return
        if grid_size > 1:
            source, cameras = self.inputs.source, self.inputs.image_keys
            for images in next(view_blocks(source, cameras, np.zeros(1, np.int64), 1)):
                self.built.encode_grid(images, grid_size)
        if num_components is not None and num_components > self.built.embedding_dim:
            raise InvalidInputError(
                f"--embedding_components {num_components} is more than the "
                f"{self.built.embedding_dim} dimensions of what {self.built.name} gives"
            )

    def make_encoder(self) -> ObservationEncoder:
        """Return the encoder; what is fitted to the dataset is fitted now, in passes of its own."""
        encoder = self.observation_encoder(self._fitted() or self.built, None)
        num_components = self.flags.embedding_components
        if num_components is None:
            return encoder
        frames = self.inputs.training_sample(COMPONENT_FIT_FRAMES, self.flags.seed)
        blocks = self._sampled(frames, "sample for components")
        embedded = encoder.encode_blocks(blocks, self.batch_size)
        vectors = (one.pooled if one.cells is None else one.cells for one in embedded)
        return replace(encoder, components=EmbeddingComponents.fit(vectors, num_components))

    def observation_encoder(
        self, encoder: VisionEncoder, components: EmbeddingComponents | None
    ) -> ObservationEncoder:
        """Return what embeds the views of this job's frames."""
        num_views, grid_size = len(self.inputs.image_keys), self.flags.embedding_grid
        return ObservationEncoder(encoder, num_views, grid_size, components)

    def _fitted(self) -> VisionEncoder | None:
        """Fit the encoder to images of all views; None where it needs no dataset."""
        fitted = self.flags.fitted_kind
        if fitted is None:
            return None
        settings, num_views = fitted.settings(self.flags), len(self.inputs.image_keys)
        num_frames = -(-settings["fit_frames"] // num_views)
        frames = self.inputs.training_sample(num_frames, settings["seed"])
        images = (
            view for views in self._sampled(frames, f"sample for {fitted.kind}") for view in views
        )
        return fitted.fit(self.flags, images, len(frames) * num_views)

    def _sampled(self, frames: Int[np.ndarray, " N"], name: str) -> Iterator[Views]:
        """Decode some frames, under a progress bar."""
        source, cameras = self.inputs.source, self.inputs.image_keys
        progress = tqdm(total=len(frames), unit="frame", desc=name)
        with progress, threadpool_limits(1, user_api="blas"):
            for views in prefetch(view_blocks(source, cameras, frames, self.batch_size)):
                yield views
                progress.update(len(views[0]))


def prefetch(blocks: Iterator[Block], depth: int = QUEUED_BLOCKS) -> Iterator[Block]:
    """Iterate in a background thread, at most `depth` blocks ahead; its exceptions arrive here."""
    pool = ThreadPoolExecutor(1)
    try:
        ahead = deque(pool.submit(next, blocks, None) for _ in range(depth))
        while (block := ahead.popleft().result()) is not None:
            ahead.append(pool.submit(next, blocks, None))
            yield block
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class PassSpeed:
    """How fast a pass ran; `num_frames` leaves out what an earlier run had done."""

    num_frames: int
    seconds: float

    @property
    def frames_per_s(self) -> float:
        """Frames per second, 0 where nothing was left to do."""
        return self.num_frames / self.seconds if self.seconds > 0 else 0.0


def write_embeddings(
    writer: CacheWriter,
    source: LeRobotSource,
    image_keys: Sequence[str],
    encoder: ObservationEncoder,
    batch_size: int,
    frames: range | None = None,
) -> PassSpeed:
    """Embed frames (by default all) in order into the cache's arrays; the caller publishes them.

    Row 0 is the first of the frames, where a batch has to begin for the same batches as in a run
    over all of them.

    Goes on after the last batch that an interrupted run put on the disk of all arrays, with the
    same batch limits, so that the result does not depend on where it stopped.

    Raises:
        InvalidInputError: an embedding is not finite, or too large for float16.
    """
    first, num_frames = (frames.start, len(frames)) if frames else (0, source.num_frames)
    shapes = array_shapes(num_frames, encoder.encoder.embedding_dim, encoder.cell_shape)
    written_rows = {name: writer.open(name, shape) for name, shape in shapes.items()}
    done = min(written_rows.values())
    start = done if done == num_frames else done - done % batch_size
    began = last_flush = time.monotonic()
    pending: list[dict[str, np.ndarray]] = []
    # Counted here: a bar that is switched off (TQDM_DISABLE=1) counts nothing.
    written = embedded = start
    name = encoder.encoder.name
    progress = tqdm(total=num_frames, initial=start, unit="frame", desc=f"embed {name}")
    indices = np.arange(first + start, first + num_frames)
    blocks = prefetch(view_blocks(source, image_keys, indices, batch_size))
    # Decoding has threads of its own; numpy's beside them would only fight for the cores.
    with progress, threadpool_limits(1, user_api="blas"):
        for embeddings in encoder.encode_blocks(blocks, batch_size):
            rows = rounded_rows(embeddings, first + embedded)
            pending.append({name: rows[name] for name in shapes})
            embedded += len(embeddings.pooled)
            progress.update(len(embeddings.pooled))
            if time.monotonic() - last_flush >= FLUSH_INTERVAL_S or embedded == num_frames:
                unwritten = [name for name in shapes if written_rows[name] < num_frames]
                writer.write(
                    written,
                    {name: np.concatenate([rows[name] for rows in pending]) for name in unwritten},
                )
                pending, written = [], embedded
                last_flush = time.monotonic()
    return PassSpeed(num_frames - start, time.monotonic() - began)


def array_shapes(
    num_frames: int, embedding_dim: int, cell_shape: tuple[int, int] | None
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of embeddings, given P and M of a frame's cells, if any."""
    shapes: dict[str, tuple[int, ...]] = {"embeddings": (num_frames, embedding_dim)}
    if cell_shape is not None:
        shapes["view_embeddings"] = (num_frames, *cell_shape)
    return shapes


def rounded_rows(
    embeddings: ObservationEmbeddings, first_frame: int
) -> dict[str, Float[np.ndarray, "B ..."]]:
    """Round what was embedded of frames to what the cache stores of them, by array.

    Raises:
        InvalidInputError: names the first frame with an embedding that float16 does not hold.
    """
    rounded = embeddings.rounded(first_frame)
    rows = {"embeddings": rounded.pooled}
    if rounded.cells is not None:
        rows["view_embeddings"] = rounded.cells
    return rows
