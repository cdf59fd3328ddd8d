"""Cameras stored as video: many episodes a file, decoded forwards instead of sought."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8

from world_modality.errors import InvalidInputError, MissingFileError
from world_modality.lerobot_source import LeRobotSource

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# LeRobotDataset's own tolerance for the distance between a frame's timestamp and the video's.
VIDEO_TOLERANCE_S = 1e-4
# Decoding on to the next wanted frame is cheaper than seeking for gaps up to this.
SEEK_GAP_S = 2.0


@dataclass(frozen=True)
class _VideoSpan:
    """The part of a video file that holds one episode."""

    path: Path
    first_frame: int
    end_frame: int
    from_timestamp: float


def video_blocks(
    source: LeRobotSource, image_key: str, indices: Int[np.ndarray, " N"], block_size: int
) -> Iterator[list[UInt8[np.ndarray, "H W 3"]]]:
    """Yield the images of `block_size` frames at a time; each file is decoded forwards, once.

    Args:
        source: the dataset.
        image_key: one of its cameras, stored as video.
        indices: strictly ascending global frame indices.
        block_size: frames per block; the last may hold fewer.
    """
    images: list[np.ndarray] = []
    for path, timestamps in _video_requests(source, image_key, indices):
        for image in _decode_video(path, timestamps):
            images.append(image)
            if len(images) == block_size:
                yield images
                images = []
    if images:
        yield images


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
