"""Camera frames of a LeRobot dataset, decoded in blocks; they equal `LeRobotDataset[i]`."""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Int, UInt8

from world_modality.errors import InvalidInputError, MissingFileError
from world_modality.lerobot_source import LeRobotSource

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# LeRobotDataset's own tolerance for the distance between a frame's timestamp and the video's.
VIDEO_TOLERANCE_S = 1e-4
# Decoding on to the next wanted frame is cheaper than seeking for gaps up to this.
SEEK_GAP_S = 2.0
PARQUET_BATCH_ROWS = 64
MAX_DECODE_THREADS = 8


def frame_blocks(
    source: LeRobotSource, image_key: str, indices: Int[np.ndarray, " N"], block_size: int
) -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
    """Decode frames in ascending order, `block_size` at a time; memory does not grow with N.

    Args:
        source: the dataset.
        image_key: one of its cameras, stored as images or as video.
        indices: strictly ascending global frame indices.
        block_size: frames per block; the last block may be smaller.

    Raises:
        InvalidInputError: a frame is not RGB, differs in size, or is missing from its video.
    """
    if len(indices) > 1 and not (np.diff(indices) > 0).all():
        raise ValueError("frame indices must ascend strictly")
    read = _image_blocks if source.features[image_key]["dtype"] == "image" else _video_blocks
    size: tuple[int, ...] | None = None
    for block in read(source, image_key, np.asarray(indices), block_size):
        size = size or block.shape[1:]
        if block.shape[1:] != size:
            raise InvalidInputError(
                f"camera {image_key} changes its image size: {size}, {block.shape[1:]}"
            )
        yield block


def frames_at(
    source: LeRobotSource, image_key: str, indices: Int[np.ndarray, " N"]
) -> UInt8[np.ndarray, "N H W 3"]:
    """Decode a few frames, in the order asked for; a frame may be asked for twice."""
    unique, inverse = np.unique(indices, return_inverse=True)
    return np.concatenate(list(frame_blocks(source, image_key, unique, 64)))[inverse]


def _stack(images: list[np.ndarray], image_key: str) -> np.ndarray:
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise InvalidInputError(f"camera {image_key} changes its image size: {sorted(sizes)}")
    return np.stack(images)


def _image_blocks(
    source: LeRobotSource, image_key: str, indices: np.ndarray, block_size: int
) -> Iterator[np.ndarray]:
    encoded = encoded_images(source, image_key, indices)
    position = 0
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_DECODE_THREADS)) as pool:
        while position < len(indices):
            wanted = indices[position : position + block_size]
            jobs = [pool.submit(decode_image, next(encoded), image_key, int(i)) for i in wanted]
            yield _stack([job.result() for job in jobs], image_key)
            position += len(wanted)


def encoded_images(source: LeRobotSource, image_key: str, indices: np.ndarray) -> Iterator[bytes]:
    """Yield the files of a camera that is stored as images, reading only the row groups needed.

    Args:
        source: the dataset.
        image_key: one of its cameras, stored as images.
        indices: strictly ascending global frame indices.

    Raises:
        InvalidInputError: a frame has no image.
    """
    first_row = 0
    for path in source.data_files:
        file = source.open_parquet(path)
        for group in range(file.num_row_groups):
            end_row = first_row + file.metadata.row_group(group).num_rows
            low, high = np.searchsorted(indices, [first_row, end_row])
            if high > low:
                rows = indices[low:high] - first_row
                yield from _images_of_group(source, file, group, image_key, rows)
            first_row = end_row


def _images_of_group(
    source: LeRobotSource, file: pq.ParquetFile, group: int, image_key: str, rows: np.ndarray
) -> Iterator[bytes]:
    start = 0
    for batch in file.iter_batches(PARQUET_BATCH_ROWS, row_groups=[group], columns=[image_key]):
        column = batch.column(image_key)
        low, high = np.searchsorted(rows, [start, start + batch.num_rows])
        for row in rows[low:high] - start:
            image = column[int(row)].as_py()
            content = image["bytes"] if image else None
            if content is None and image and image["path"]:
                content = (source.root / image["path"]).read_bytes()
            if content is None:
                raise InvalidInputError(
                    f"camera {image_key} has no image in a frame of {source.name}"
                )
            yield content
        start += batch.num_rows


def decode_image(content: bytes, image_key: str, index: int) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file.

    Args:
        content: the file.
        image_key: its camera, for errors.
        index: its global frame index, for errors.

    Raises:
        InvalidInputError: it is damaged, or not 8-bit RGB.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content))
        pixels = np.asarray(image)
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidInputError(
            f"frame {index} of camera {image_key} is no readable image: {error}"
        ) from error
    if image.mode != "RGB":
        raise InvalidInputError(
            f"frame {index} of camera {image_key} has mode {image.mode} ({pixels.dtype}), expected "
            "8-bit RGB"
        )
    return pixels


@dataclass(frozen=True)
class _VideoSpan:
    """The part of a video file that holds one episode."""

    path: Path
    first_frame: int
    end_frame: int
    from_timestamp: float


def _video_spans(source: LeRobotSource, image_key: str) -> list[_VideoSpan]:
    prefix = f"videos/{image_key}"
    keys = ["dataset_from_index", "dataset_to_index"]
    keys += [f"{prefix}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    spans = []
    for path in sorted(source.root.glob("meta/episodes/*/*.parquet")):
        table = source.open_parquet(path).read(columns=keys)
        for start, end, chunk, file, timestamp in zip(
            *(table.column(key).to_pylist() for key in keys), strict=True
        ):
            name = source.info["video_path"].format(
                video_key=image_key, chunk_index=chunk, file_index=file
            )
            spans.append(_VideoSpan(source.root / name, start, end, timestamp))
    return sorted(spans, key=lambda span: span.first_frame)


def _video_blocks(
    source: LeRobotSource, image_key: str, indices: np.ndarray, block_size: int
) -> Iterator[np.ndarray]:
    images: list[np.ndarray] = []
    for path, timestamps in _video_requests(source, image_key, indices):
        for image in _decode_video(path, timestamps):
            images.append(image)
            if len(images) == block_size:
                yield _stack(images, image_key)
                images = []
    if images:
        yield _stack(images, image_key)


def _video_requests(
    source: LeRobotSource, image_key: str, indices: np.ndarray
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield (file, timestamps in it): consecutive episodes of one file are decoded in one pass."""
    in_episode = np.concatenate([block["timestamp"] for block in source.columns(["timestamp"])])
    path: Path | None = None
    pending: list[np.ndarray] = []
    for span in _video_spans(source, image_key):
        low, high = np.searchsorted(indices, [span.first_frame, span.end_frame])
        if high == low:
            continue
        # One mp4 holds many episodes: a frame's time counts from its episode's start in the file.
        timestamps = span.from_timestamp + in_episode[indices[low:high]].astype(np.float64)
        if path is not None and (span.path != path or timestamps[0] <= pending[-1][-1]):
            yield path, np.concatenate(pending)
            pending = []
        path = span.path
        pending.append(timestamps)
    if path is not None:
        yield path, np.concatenate(pending)


def _decode_video(path: Path, timestamps: np.ndarray) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the frame at each of the ascending timestamps (s), decoding forwards."""
    import av

    if not path.exists():
        raise MissingFileError(f"the video {path} of the dataset is missing")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for run in np.split(timestamps, np.flatnonzero(np.diff(timestamps) > SEEK_GAP_S) + 1):
                # One tick of margin: a frame's time is rounded to the stream's time base.
                start = max(round(run[0] / float(stream.time_base)) - 1, 0)
                container.seek(start, stream=stream, backward=True, any_frame=False)
                decoded = container.decode(stream)
                for wanted in run:
                    yield _advance_to(decoded, float(wanted), path).to_ndarray(format="rgb24")
    except av.error.InvalidDataError as error:
        raise InvalidInputError(f"{path} is damaged: {error}") from error


def _advance_to(decoded: "Iterator[VideoFrame]", wanted: float, path: Path) -> "VideoFrame":
    """Decode on to the frame whose time is `wanted`, within the tolerance."""
    found = None
    for frame in decoded:
        found = frame.time
        if found is not None and found >= wanted - VIDEO_TOLERANCE_S:
            if found <= wanted + VIDEO_TOLERANCE_S:
                return frame
            break
    raise InvalidInputError(
        f"{path} has no frame at {wanted:.4f} s (went on to {found} s); timestamps and video "
        "disagree"
    )
