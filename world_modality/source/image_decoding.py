"""Cameras stored as images: read from parquet in blocks, decoded by several threads."""

import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from world_modality.source.lerobot_format import to_numpy
from world_modality.source.lerobot_source import INDEX_KEY, LeRobotSource
from world_modality.source.png_decoding import decode_png
from world_modality.system.errors import InvalidInputError, MissingFileError

PARQUET_BATCH_ROWS = 64
MAX_DECODE_THREADS = 8


def image_blocks(
    source: LeRobotSource, image_key: str, indices: Int[np.ndarray, " N"], block_size: int
) -> Iterator[list[UInt8[np.ndarray, "H W 3"]]]:
    """Yield the images of `block_size` frames at a time, decoded one block ahead.

    Args:
        source: the dataset.
        image_key: one of its cameras, stored as images.
        indices: strictly ascending global frame indices.
        block_size: frames per block; the last may hold fewer.
    """
    encoded = encoded_images(source, image_key, indices)
    num_threads = min(len(os.sched_getaffinity(0)), MAX_DECODE_THREADS)
    ahead: deque[list[Future[list[np.ndarray]]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(indices), block_size):
            wanted = indices[start : start + block_size]
            # A job decodes many images: handing each over alone costs a fifth of decoding it.
            ahead.append(
                [
                    pool.submit(_decode_images, [next(encoded) for _ in frames], image_key, frames)
                    for frames in np.array_split(wanted, num_threads)
                ]
            )
            if len(ahead) > 1:
                yield [image for job in ahead.popleft() for image in job.result()]
        for jobs in ahead:
            yield [image for job in jobs for image in job.result()]


def _decode_images(
    contents: Sequence[bytes], image_key: str, indices: np.ndarray
) -> list[np.ndarray]:
    return [
        decode_image(content, image_key, int(index))
        for content, index in zip(contents, indices, strict=True)
    ]


def encoded_images(source: LeRobotSource, image_key: str, indices: np.ndarray) -> Iterator[bytes]:
    """Yield the files of a camera that is stored as images, reading only the row groups needed.

    Args:
        source: the dataset.
        image_key: one of its cameras, stored as images.
        indices: strictly ascending global frame indices.

    Raises:
        InvalidInputError: a frame has no image, or there is no such frame.
    """
    done = 0
    first_row = 0
    for path in source.data_files:
        metadata = source.open_parquet(path).metadata
        for group in range(metadata.num_row_groups):
            end_row = first_row + metadata.row_group(group).num_rows
            low, high = np.searchsorted(indices, [first_row, end_row])
            if high > low:
                yield from _images_of_group(source, path, group, image_key, first_row, indices)
                done += high - low
            first_row = end_row
    if done != len(indices):
        raise InvalidInputError(
            f"{source.name} has {first_row} frames of camera {image_key}, but {len(indices)} were "
            f"asked for, {indices[0]} to {indices[-1]}, of which it has {done}"
        )


def _images_of_group(
    source: LeRobotSource,
    path: Path,
    group: int,
    image_key: str,
    first_frame: int,
    indices: np.ndarray,
) -> Iterator[bytes]:
    """Yield the wanted files of one row group, whose first row is the frame `first_frame`."""
    keys = [image_key, INDEX_KEY]
    for batch in source.batches(path, keys, PARQUET_BATCH_ROWS, group):
        low, high = np.searchsorted(indices, [first_frame, first_frame + batch.num_rows])
        if high > low:
            frames = to_numpy(batch.column(INDEX_KEY), INDEX_KEY, path)
            source.require_order(frames.reshape(-1), first_frame, path)
        for frame in indices[low:high].tolist():
            stored = batch.column(image_key)[frame - first_frame].as_py()
            yield _file_of(stored, source, image_key)
        first_frame += batch.num_rows


def _file_of(stored: Any, source: LeRobotSource, image_key: str) -> bytes:
    """Return the file in a cell: `datasets` takes {bytes, path}, and either of the two alone."""
    if not isinstance(stored, dict):
        stored = {"bytes" if isinstance(stored, bytes) else "path": stored}
    content, path = stored.get("bytes"), stored.get("path")
    if isinstance(content, bytes):
        return content
    if not isinstance(path, str):
        raise InvalidInputError(f"camera {image_key} has no image in a frame of {source.name}")
    try:
        return (source.root / path).read_bytes()
    except OSError as error:
        raise MissingFileError(
            f"camera {image_key} of {source.name} names an image that cannot be read: {error}"
        ) from error


def decode_image(content: bytes, image_key: str, index: int) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file as `datasets` and LeRobot do: upright, grey in three equal channels.

    Args:
        content: the file.
        image_key: its camera, for errors.
        index: its global frame index, for errors.

    Raises:
        InvalidInputError: it is damaged, or no picture of RGB or grey with 8 bits.
    """
    pixels = decode_png(content)
    if pixels is not None:
        return pixels
    from PIL import Image, ImageOps

    with refused_if_damaged(image_key, index), Image.open(io.BytesIO(content)) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    is_opaque = image.mode not in ("RGBA", "LA") or image.getextrema()[-1] == (255, 255)
    if image.mode not in ("RGB", "L", "1", "RGBA", "LA") or not is_opaque:
        # LeRobot hands on a palette's indices, CMYK's four channels, 16 bits without a scale.
        raise InvalidInputError(
            f"frame {index} of camera {image_key} is {image.format} of mode {image.mode}"
            f"{'' if is_opaque else ', partly transparent'}; expected RGB or grey of 8 bits"
        )
    return np.asarray(image.convert("RGB"))


@contextmanager
def refused_if_damaged(image_key: str, index: int) -> Iterator[None]:
    """Say in one line what Pillow finds wrong with an image file.

    Args:
        image_key: its camera.
        index: its global frame index.

    Raises:
        InvalidInputError: Pillow could not read it.
    """
    from PIL import Image

    try:
        yield
    # Pillow says SyntaxError where a PNG's check sum is wrong, RuntimeError of a damaged AVIF.
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise InvalidInputError(
            f"frame {index} of camera {image_key} is no readable image: {error}"
        ) from error
