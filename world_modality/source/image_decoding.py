"""Cameras stored as images: read from parquet in blocks, decoded by several threads.

FFmpeg decodes a PNG in two thirds of the time that Pillow needs. It gets only what it is known to
decode to exactly Pillow's pixels: whole files of 8-bit RGB. The rest, and every error message, is
Pillow's.
"""

import io
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, UInt8

from world_modality.source.lerobot_format import to_numpy
from world_modality.source.lerobot_source import INDEX_KEY, LeRobotSource
from world_modality.system.errors import InvalidInputError, MissingFileError

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

PARQUET_BATCH_ROWS = 64
MAX_DECODE_THREADS = 8
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LAST_PNG_CHUNK = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# Bit depth 8, colour type RGB, deflate, adaptive filters, not interlaced: bytes 24 to 28 (PNG
# specification, 11.2.1).
RGB_PNG_HEADER = bytes([8, 2, 0, 0, 0])
# Chunks that change no pixel. Others may: a text or EXIF says that the image is to be turned.
PLAIN_PNG_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME"}
RgbImage = UInt8[np.ndarray, "H W 3"]
_of_thread = threading.local()


def image_blocks(
    source: LeRobotSource,
    image_keys: Sequence[str],
    indices: Int[np.ndarray, " N"],
    block_size: int,
) -> Iterator[list[list[RgbImage]]]:
    """Yield the images of `block_size` frames at a time, decoded one block ahead.

    The rows of the dataset are read once for all cameras.

    Yields:
        for each frame its images, one a camera.
    """

    def decoded(files: Sequence[list[bytes]], frames: np.ndarray) -> list[list[np.ndarray]]:
        return [
            [decode_image(file, key, frame) for file, key in zip(own, image_keys, strict=True)]
            for own, frame in zip(files, frames.tolist(), strict=True)
        ]

    encoded = _encoded_views(source, image_keys, indices)
    num_threads = min(len(os.sched_getaffinity(0)), MAX_DECODE_THREADS)
    ahead: deque[list[Future[list[list[np.ndarray]]]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(indices), block_size):
            wanted = indices[start : start + block_size]
            # A job decodes many images: handing each over alone costs a fifth of decoding it.
            ahead.append(
                [
                    pool.submit(decoded, [next(encoded) for _ in frames], frames)
                    for frames in np.array_split(wanted, num_threads)
                ]
            )
            if len(ahead) > 1:
                yield [images for job in ahead.popleft() for images in job.result()]
        for jobs in ahead:
            yield [images for job in jobs for images in job.result()]


def encoded_images(source: LeRobotSource, image_key: str, indices: np.ndarray) -> Iterator[bytes]:
    """Yield the files of a camera that is stored as images, reading only the row groups needed.

    Args:
        source: the dataset.
        image_key: the camera.
        indices: strictly ascending global frame indices.

    Raises:
        InvalidInputError: a frame has no image, or there is no such frame.
    """
    for (file,) in _encoded_views(source, [image_key], indices):
        yield file


def _encoded_views(
    source: LeRobotSource, image_keys: Sequence[str], indices: np.ndarray
) -> Iterator[list[bytes]]:
    """Yield the files of each frame, one a camera; arguments and errors as `encoded_images`."""
    done = first = 0
    wanted_columns = [*image_keys, INDEX_KEY]
    for path in source.data_files:
        metadata = source.open_parquet(path).metadata
        for group in range(metadata.num_row_groups):
            end = first + metadata.row_group(group).num_rows
            if not len(_within(indices, first, end)):
                first = end
                continue
            for batch in source.batches(path, wanted_columns, PARQUET_BATCH_ROWS, group):
                wanted = _within(indices, first, first + batch.num_rows)
                if len(wanted):
                    frames = to_numpy(batch.column(INDEX_KEY), INDEX_KEY, path)
                    source.require_order(frames.reshape(-1), first, path)
                for row in (wanted - first).tolist():
                    yield [_file_of(batch.column(k)[row].as_py(), source, k) for k in image_keys]
                done += len(wanted)
                first += batch.num_rows
    if done != len(indices):
        raise InvalidInputError(
            f"{source.name} has {first} frames of camera {', '.join(image_keys)}, but "
            f"{len(indices)} were asked for, {indices[0]} to {indices[-1]}, of which it has {done}"
        )


def _within(indices: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return those of the ascending indices that lie in [start, end)."""
    low, high = np.searchsorted(indices, [start, end])
    return indices[low:high]


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

    Raises:
        InvalidInputError: names camera and frame of a damaged image, or one of other colours than
            RGB or grey of 8 bits.
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


def decode_png(content: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """Decode a PNG file, or return None where Pillow has to."""
    import av

    if not is_plain_rgb(content):
        return None
    packet = av.Packet(content)
    packet.is_keyframe = True  # otherwise it would be added to the image before, as in an APNG
    try:
        frames = _png_decoder().decode(packet)
    except av.error.FFmpegError:
        return None
    # Transparency makes it another format.
    if len(frames) != 1 or frames[0].format.name != "rgb24":
        return None
    pixels: np.ndarray = frames[0].to_ndarray()
    return pixels


def is_plain_rgb(content: bytes) -> bool:
    """Return whether a file is a whole PNG of 8-bit RGB in which nothing else changes the picture.

    Its check sums are not compared.
    """
    is_whole = content.startswith(PNG_SIGNATURE) and content.endswith(LAST_PNG_CHUNK)
    if not is_whole or content[24:29] != RGB_PNG_HEADER:
        return False
    place = len(PNG_SIGNATURE)
    while place < len(content):
        if content[place + 4 : place + 8] not in PLAIN_PNG_CHUNKS:
            return False
        # Length, kind and check sum take four bytes each.
        place += int.from_bytes(content[place : place + 4], "big") + 12
    return place == len(content)


def _png_decoder() -> "VideoCodecContext":
    """Return this thread's decoder, which two threads may not share."""
    import av

    found: VideoCodecContext | None = getattr(_of_thread, "decoder", None)
    if found is None:
        found = av.VideoCodecContext.create("png", "r")
        found.thread_count = 1  # the caller decodes many images side by side
        found.options = {"err_detect": "crccheck+explode"}
        _of_thread.decoder = found
    return found
