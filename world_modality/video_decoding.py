"""Cameras stored as video: many episodes a file, decoded forwards instead of sought."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int, UInt8

from world_modality.dataset_episodes import MEND, episode_table
from world_modality.errors import InvalidInputError, MissingFileError
from world_modality.lerobot_source import LeRobotSource

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# LeRobotDataset's own tolerance for the distance between a frame's timestamp and the video's.
VIDEO_TOLERANCE_S = 1e-4
TIME_KEY = "timestamp"
# Decoding on to the next wanted frame is cheaper than seeking for gaps up to this.
SEEK_GAP_S = 2.0


@dataclass(frozen=True)
class _VideoSpan:
    """The part of a video file that holds one episode.

    Attributes:
        path: the file.
        episode: its `episode_index`.
        first_frame: global index of its first frame.
        times: of its frames in the file, in seconds.
    """

    path: Path
    episode: int
    first_frame: int
    times: Float64[np.ndarray, " _T"]


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
    """Return where each episode lies in which file, in frame order.

    Raises:
        InvalidInputError: timestamps do not ascend, or leave the stretch that `meta/episodes` gives
            an episode in its file, or two episodes have the same frames.
    """
    names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    keys = [f"videos/{image_key}/{name}" for name in names]
    episodes, table = episode_table(source, keys)
    parts = [block[TIME_KEY].reshape(-1) for block in source.columns([TIME_KEY])]
    # One mp4 holds many episodes: a frame's time counts from its episode's start in the file.
    in_episode = np.concatenate(parts).astype(np.float64)
    spans = []
    columns = [episodes.ids, episodes.starts, episodes.ends, *(table[key] for key in keys)]
    for episode, start, end, chunk, file, begin, finish in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        path = source.root / str(source.info["video_path"]).format(
            video_key=image_key, chunk_index=chunk, file_index=file
        )
        times = begin + in_episode[start:end]
        # Half a frame's slack: files round their times.
        fits = times[0] > begin - VIDEO_TOLERANCE_S and (finish - times[-1]) * source.fps > 0.5
        if not (fits and (np.diff(times) > VIDEO_TOLERANCE_S).all()):
            raise InvalidInputError(
                f"the timestamps of episode {episode} of {source.name} do not ascend within "
                f"{begin:.4f} to {finish:.4f} s of {path}, its place in meta/episodes; {MEND}"
            )
        spans.append(_VideoSpan(path, episode, start, times))
    ordered = sorted(spans, key=lambda span: (span.path, span.times[0]))
    for one, other in pairwise(ordered):
        if one.path == other.path and not (other.times[0] - one.times[-1]) * source.fps > 0.5:
            raise InvalidInputError(
                f"episodes {one.episode} and {other.episode} of {source.name} have the same frames "
                f"of {one.path}; {MEND}"
            )
    return spans


def _video_requests(
    source: LeRobotSource, image_key: str, indices: np.ndarray
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield (file, timestamps in it): consecutive episodes of one file are decoded in one pass."""
    path: Path | None = None
    pending: list[np.ndarray] = []
    for span in _video_spans(source, image_key):
        end = span.first_frame + len(span.times)
        low, high = np.searchsorted(indices, [span.first_frame, end])
        if high == low:
            continue
        timestamps = span.times[indices[low:high] - span.first_frame]
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
