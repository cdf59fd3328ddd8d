"""Camera frames of a LeRobot dataset, decoded in blocks; they equal `LeRobotDataset[i]`.

Many episodes share a video file, which is decoded forwards instead of sought. Images are decoded in
`image_decoding`.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int, UInt8

from world_modality.source.dataset_episodes import TIME_KEY, episode_table
from world_modality.source.image_decoding import RgbImage, image_blocks
from world_modality.source.lerobot_format import MEND
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError, MissingFileError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# LeRobotDataset's own tolerance for the distance between a frame's timestamp and the video's.
VIDEO_TOLERANCE_S = 1e-4
# Decoding on to the next wanted frame is cheaper than seeking for gaps up to this.
SEEK_GAP_S = 2.0
# The matrices from RGB to YUV that FFmpeg converts back, by their numbers in ITU-T H.273: BT.709,
# none named (then BT.601, as torchcodec has it), FCC, BT.601 twice, SMPTE 240M, BT.2020. It would
# take any other for BT.601.
YUV_MATRICES = frozenset({1, 2, 4, 5, 6, 7, 9})


def frame_blocks(
    source: LeRobotSource, image_key: str, indices: Int[np.ndarray, " N"], block_size: int
) -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
    """Decode frames of one camera; see `view_blocks`."""
    for (images,) in view_blocks(source, [image_key], indices, block_size):
        yield images


def view_blocks(
    source: LeRobotSource,
    image_keys: Sequence[str],
    indices: Int[np.ndarray, " N"],
    block_size: int,
) -> Iterator[tuple[UInt8[np.ndarray, "B _ _ 3"], ...]]:
    """Decode frames in ascending order, `block_size` at a time; memory does not grow with N.

    Cameras that are stored as images lie in the same rows, which are read once for all of them.

    Args:
        source: the dataset.
        image_keys: cameras of it, stored as images or as video; each has an image size of its own.
        indices: strictly ascending global frame indices.
        block_size: frames per block; the last block may be smaller.

    Yields:
        the images of each camera, in the order of `image_keys`.

    Raises:
        InvalidInputError: a camera measures depth, or a frame has other colours than RGB and
            grey, differs in size from others of its camera, or is not there.
    """
    if len(indices) > 1 and not (np.diff(indices) > 0).all():
        raise ValueError("frame indices must ascend strictly")
    for image_key in image_keys:
        _require_colours(source, image_key)
    stored = [key for key in image_keys if source.features[key]["dtype"] == "image"]
    blocks: dict[str, Iterator[Sequence[np.ndarray]]] = {
        key: _video_blocks(source, key, indices, block_size)
        for key in image_keys
        if key not in stored
    }
    if stored:
        together = tee(image_blocks(source, stored, indices, block_size), len(stored))
        for camera, (key, own) in enumerate(zip(stored, together, strict=True)):
            blocks[key] = _of_camera(own, camera)
    checked = [_whole(source, key, blocks[key], indices) for key in image_keys]
    yield from zip(*checked, strict=True)


def _of_camera(
    blocks: Iterator[list[list[RgbImage]]], camera: int
) -> Iterator[Sequence[np.ndarray]]:
    for block in blocks:
        yield [images[camera] for images in block]


def _require_colours(source: LeRobotSource, image_key: str) -> None:
    feature = source.features[image_key]
    described = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    if described.get("is_depth_map") or described.get("video.is_depth_map"):
        raise InvalidInputError(
            f"camera {image_key} of {source.name} measures depth, expected colours; choose another "
            "with --image_key"
        )


def _whole(
    source: LeRobotSource,
    image_key: str,
    blocks: Iterator[Sequence[np.ndarray]],
    indices: Int[np.ndarray, " N"],
) -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
    """Yield the blocks of one camera, checked: its images are of one size, and all there."""
    sizes: set[tuple[int, ...]] = set()
    done = 0
    for images in blocks:
        sizes |= {image.shape for image in images}
        if len(sizes) > 1:
            raise InvalidInputError(f"camera {image_key} changes its image size: {sorted(sizes)}")
        yield np.stack(images)
        done += len(images)
    if done != len(indices):
        raise InvalidInputError(
            f"camera {image_key} of {source.name} gave {done} of {len(indices)} frames, "
            f"{indices[0]} to {indices[-1]}; the dataset has {source.num_frames}"
        )


def frames_at(
    source: LeRobotSource, image_key: str, indices: Int[np.ndarray, " N"]
) -> UInt8[np.ndarray, "N H W 3"]:
    """Decode a few frames, in the order asked for; a frame may be asked for twice."""
    unique, inverse = np.unique(indices, return_inverse=True)
    return np.concatenate(list(frame_blocks(source, image_key, unique, 64)))[inverse]


class _VideoSpan(NamedTuple):
    """The part of a video file that holds one episode; the times are those in the file, in s."""

    path: Path
    episode_index: int
    first_frame: int
    times: Float64[np.ndarray, " _T"]


def _video_blocks(
    source: LeRobotSource, image_key: str, indices: Int[np.ndarray, " N"], block_size: int
) -> Iterator[list[RgbImage]]:
    """Yield the images of `block_size` frames at a time; each file is decoded forwards, once."""
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
    # One mp4 holds many episodes: a frame's time counts from its episode's start in the file.
    in_episode = source.whole_columns([TIME_KEY])[TIME_KEY].reshape(-1).astype(np.float64)
    spans = []
    columns = [episodes.ids, episodes.starts, episodes.ends, *(table[key] for key in keys)]
    for episode, start, end, chunk, file, begin, finish in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        path = _video_file(source, image_key, chunk, file)
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
                f"episodes {one.episode_index} and {other.episode_index} of {source.name} have the "
                f"same frames of {one.path}; {MEND}"
            )
    return spans


def _video_file(source: LeRobotSource, image_key: str, chunk: int, file: int) -> Path:
    template: Any = source.info.get("video_path")
    try:
        return source.root / template.format(
            video_key=image_key, chunk_index=chunk, file_index=file
        )
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise InvalidInputError(
            f"meta/info.json of {source.name} ({source.root}) has video_path {template!r}, "
            f"expected a name with {{video_key}}, {{chunk_index}} and {{file_index}}; {MEND}"
        ) from error


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
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise InvalidInputError(f"{path} has no video that FFmpeg can decode")
            stream.thread_type = "AUTO"
            for run in np.split(timestamps, np.flatnonzero(np.diff(timestamps) > SEEK_GAP_S) + 1):
                # One tick of margin: a frame's time is rounded to the stream's time base.
                start = max(round(run[0] / float(stream.time_base)) - 1, 0)
                container.seek(start, stream=stream, backward=True, any_frame=False)
                decoded = container.decode(stream)
                for wanted in run:
                    yield _rgb(_advance_to(decoded, float(wanted), path), path)
    except av.error.FFmpegError as error:
        raise InvalidInputError(
            f"{path} is damaged, or FFmpeg cannot decode it: {error}"
        ) from error


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


def _rgb(frame: "VideoFrame", path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Convert a frame by its own colour tags, to exactly the pixels that torchcodec gives.

    The tag also counts where torchcodec 0.10 overlooks it: in grey of limited range, and in full
    range where the width is a multiple of 32.
    """
    from av.video.reformatter import ColorRange, Interpolation

    layout = frame.format.name
    if not frame.format.is_rgb and frame.colorspace not in YUV_MATRICES:
        raise InvalidInputError(
            f"{path} holds {layout} with colour matrix {frame.colorspace} of ITU-T H.273, expected "
            f"one of {sorted(YUV_MATRICES)}; encode it again with BT.709"
        )
    if frame.rotation:
        raise InvalidInputError(
            f"{path} is to be turned by {frame.rotation} degrees when it is shown, which not every "
            "release of torchcodec does; encode it again without the rotation"
        )
    if frame.is_corrupt:
        raise InvalidInputError(f"{path} is damaged: its frame at {frame.time:.4f} s is not whole")
    is_full = frame.color_range == ColorRange.JPEG or (
        frame.color_range == ColorRange.UNSPECIFIED and layout.startswith(("yuvj", "gray"))
    )
    if layout == "gray" and not is_full:  # the one layout whose range FFmpeg's converter overlooks
        frame = frame.reformat(format="gray10le")
    pixels: np.ndarray = frame.to_ndarray(
        format="rgb24",
        src_colorspace=frame.colorspace,
        dst_colorspace=0,  # RGB; where it equals the source's, PyAV sets neither matrix nor range
        src_color_range=ColorRange.JPEG if is_full else ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC,
    )
    return pixels
