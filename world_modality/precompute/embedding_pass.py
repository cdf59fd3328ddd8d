"""What is embedded with what, and one pass of an encoder over the frames.

Decoding runs ahead in a thread, and rows go to the cache.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from world_modality.cache.writer import CacheWriter
from world_modality.encode.vision_encoders import VisionEncoder, VisionEncoderFlags, build_encoder
from world_modality.precompute.inputs import PrecomputeInputs
from world_modality.source.frame_decoding import frame_blocks
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError

QUEUED_BLOCKS = 4
# Putting rows on the disk costs some 10 ms; a kill loses at most this much work.
FLUSH_INTERVAL_S = 0.5


@dataclass(frozen=True)
class EmbeddingJob:
    """The frames of a dataset, the encoder asked for, and how it runs.

    It is known before an encoder is fitted or a frame decoded. `batch_size` and `device` are no
    part of what the embeddings are.
    """

    inputs: PrecomputeInputs
    flags: VisionEncoderFlags
    batch_size: int
    device: str

    @cached_property
    def _built(self) -> VisionEncoder:
        """The encoder where it needs no dataset."""
        from world_modality.system.device import resolve_device

        return build_encoder(self.flags, resolve_device(self.device))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that determines the embeddings."""
        fitted = self.flags.fitted_kind
        if fitted is not None:
            own = fitted.settings(self.flags)
            settings = {"kind": fitted.kind, **own, "split": self.inputs.split_section}
        else:
            # A model is the same under another path, and whatever the device that ran it.
            record = self._built.record()
            settings = {k: v for k, v in record.items() if k not in ("name", "revision")}
        return {"dataset": self.inputs.dataset_section, "encoder": settings}

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that it makes."""
        fitted = self.flags.fitted_kind
        return ("embeddings", *(() if fitted is None else fitted.array_names))

    @property
    def compute(self) -> dict[str, str]:
        """Device and number format that the encoder computes with."""
        return dict((self.flags.fitted_kind or self._built).compute)

    def make_encoder(self) -> VisionEncoder:
        """Return the encoder; one that is fitted to the dataset is fitted now."""
        fitted = self.flags.fitted_kind
        if fitted is None:
            return self._built
        settings = fitted.settings(self.flags)
        frames = self.inputs.training_sample(settings["fit_frames"], settings["seed"])

        def sampled() -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
            source, camera = self.inputs.source, self.inputs.image_keys[0]
            progress = tqdm(total=len(frames), unit="frame", desc=f"sample for {fitted.kind}")
            with progress, threadpool_limits(1, user_api="blas"):
                for images in prefetch(frame_blocks(source, camera, frames, self.batch_size)):
                    yield images
                    progress.update(len(images))

        return fitted.fit(self.flags, sampled(), len(frames))


def prefetch(blocks: Iterator[np.ndarray], depth: int = QUEUED_BLOCKS) -> Iterator[np.ndarray]:
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
    image_key: str,
    encoder: VisionEncoder,
    batch_size: int,
    frames: range | None = None,
) -> PassSpeed:
    """Embed frames (by default all) in order into the array `embeddings`; the caller publishes it.

    Row 0 is the first of the frames, where a batch has to begin for the same batches as in a run
    over all of them.

    Goes on after the last batch that an interrupted run put on the disk, with the same batch
    limits, so that the result does not depend on where it stopped.

    Raises:
        InvalidInputError: an embedding is not finite, or too large for float16.
    """
    first, num_frames = (frames.start, len(frames)) if frames else (0, source.num_frames)
    done = writer.open("embeddings", (num_frames, encoder.embedding_dim))
    start = done if done == num_frames else done - done % batch_size
    began = last_flush = time.monotonic()
    pending: list[np.ndarray] = []
    # Counted here: a bar that is switched off (TQDM_DISABLE=1) counts nothing.
    written = embedded = start
    progress = tqdm(total=num_frames, initial=start, unit="frame", desc=f"embed {encoder.name}")
    indices = np.arange(first + start, first + num_frames)
    blocks = prefetch(frame_blocks(source, image_key, indices, batch_size))
    # Decoding has threads of its own; numpy's beside them would only fight for the cores.
    with progress, threadpool_limits(1, user_api="blas"):
        for embeddings in encoder.encode_blocks(blocks, batch_size):
            rows = to_float16(embeddings, first + embedded)
            pending.append(rows)
            embedded += len(rows)
            progress.update(len(rows))
            if time.monotonic() - last_flush >= FLUSH_INTERVAL_S or embedded == num_frames:
                writer.write(written, {"embeddings": np.concatenate(pending)})
                pending, written = [], embedded
                last_flush = time.monotonic()
    return PassSpeed(num_frames - start, time.monotonic() - began)


def to_float16(embeddings: Float[np.ndarray, "B D"], first_frame: int) -> Float[np.ndarray, "B D"]:
    """Round embeddings to what the cache stores.

    Raises:
        InvalidInputError: names the first frame whose embedding is not finite in float16.
    """
    with np.errstate(over="ignore"):
        stored = embeddings.astype(np.float16)
    bad = ~np.isfinite(stored).all(axis=1)
    if bad.any():
        frame = first_frame + int(np.argmax(bad))
        largest = np.abs(embeddings[np.isfinite(embeddings)]).max(initial=0)
        reason = "is not finite" if not np.isfinite(embeddings[bad]).all() else "overflows float16"
        raise InvalidInputError(
            f"the embedding of frame {frame} {reason} (largest finite number {largest:.3g}); check "
            "the encoder's weights, or try --precision fp32"
        )
    return stored
