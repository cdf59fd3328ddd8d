"""Keyframes: which frames of an episode a model is shown, and their pictures."""

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from coc_vla.authors.vlm import Picture, Pictures, RecordedImage
from coc_vla.events.motion import EpisodeMotion, hand_speed
from world_modality.source.frame_decoding import frame_blocks
from world_modality.source.image_decoding import (
    decode_image,
    encoded_images,
    is_plain_rgb,
    refused_if_damaged,
)
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import UserError

KeyframeChoice = Literal["uniform", "events"]
DEFAULT_NUM_KEYFRAMES: dict[KeyframeChoice, int] = {"uniform": 3, "events": 6}
# A pause counts where the speed falls by this share of the episode's highest.
MIN_PROMINENCE = 0.2
BLOCK_FRAMES = 32
# What browsers and inference servers read.
_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg"}


def uniform_keyframes(num_frames: int, num_keyframes: int) -> tuple[int, ...]:
    """Return evenly spaced frames from the first to the last; 3 are start, middle and end.

    A short episode has fewer frames than asked for, each once.
    """
    positions = np.linspace(0, num_frames - 1, num_keyframes).round().astype(int)
    return tuple(dict.fromkeys(positions.tolist()))


def event_keyframes(motion: EpisodeMotion, num_keyframes: int) -> tuple[int, ...]:
    """Return the frames where something changes: gripper events first, then pauses of the hand.

    The first and the last frame belong to it. Where fewer things happen than frames are asked for,
    the middles of the longest gaps are added. No image is decoded.
    """
    num_frames = len(motion.positions)
    wanted = min(num_keyframes, num_frames)
    ranked = [0, num_frames - 1, *(event.frame for event in motion.gripper_events)]
    ranked += velocity_minima(motion.positions, motion.fps).tolist()
    chosen = list(dict.fromkeys(ranked))[:wanted]
    while len(chosen) < wanted:
        frames = np.sort(chosen)
        gaps = np.diff(frames)
        longest = int(np.argmax(gaps))
        chosen.append(int(frames[longest] + gaps[longest] // 2))
    return tuple(sorted(chosen))


def velocity_minima(positions: Float[np.ndarray, "T 3"], fps: float) -> Int[np.ndarray, " M"]:
    """Return the frames where the hand pauses, the most pronounced first.

    Local minima of the smoothed speed (`scipy.signal.find_peaks` of its negative), by prominence.
    """
    from scipy.signal import find_peaks

    speed = hand_speed(positions, fps)
    if speed.max() == 0:
        return np.array([], dtype=np.int64)
    minima, found = find_peaks(-speed, prominence=MIN_PROMINENCE * float(speed.max()))
    return minima[np.argsort(-found["prominences"], kind="stable")]


def keyframe_images(
    source: LeRobotSource,
    image_key: str,
    frames: Sequence[Sequence[int]],
    max_side: int,
    *,
    as_recorded: bool = False,
) -> Iterator[Pictures | str]:
    """Yield each episode's keyframes, or what is wrong with them.

    The frames of all episodes are read in ascending order. Where one cannot be read, the episodes
    that follow are read one by one, so that a damaged image costs only its own episode.

    Args:
        source: the dataset.
        image_key: one of its cameras.
        frames: global frame indices by episode, ascending over all of them; no episode is empty.
        max_side: larger images are made smaller, with their proportions.
        as_recorded: hand on small enough files of a camera that is stored as images, undecoded.
    """
    is_file = as_recorded and source.features[image_key]["dtype"] == "image"

    def read(episodes: Sequence[Sequence[int]]) -> Iterator[Pictures]:
        return _pictures(source, image_key, episodes, max_side, is_file)

    done = 0
    while done < len(frames):
        try:
            for pictures in read(frames[done:]):
                yield pictures
                done += 1
        except UserError:
            for episode in frames[done : done + BLOCK_FRAMES]:
                try:
                    yield next(read([episode]))
                except UserError as error:
                    yield str(error)
                done += 1


def _pictures(
    source: LeRobotSource,
    image_key: str,
    frames: Sequence[Sequence[int]],
    max_side: int,
    is_file: bool,
) -> Iterator[Pictures]:
    wanted = np.array([frame for episode in frames for frame in episode], dtype=np.int64)
    images: Iterator[Picture]
    if is_file:
        contents = zip(encoded_images(source, image_key, wanted), wanted.tolist(), strict=True)
        images = (_file(content, image_key, frame, max_side) for content, frame in contents)
    else:
        # Copies: a kept image must not keep its whole block in memory.
        blocks = frame_blocks(source, image_key, wanted, BLOCK_FRAMES)
        images = (_limited(np.array(image), max_side) for block in blocks for image in block)
    for episode in frames:
        yield tuple(islice(images, len(episode)))


def _file(content: bytes, image_key: str, frame: int, max_side: int) -> Picture:
    """Return an image's file where it can be handed on, else its pixels."""
    from PIL import ExifTags, Image

    with refused_if_damaged(image_key, frame):
        image = Image.open(io.BytesIO(content))
        media_type = _MEDIA_TYPES.get(image.format or "")
        is_small = max(image.size) <= max_side and image.mode == "RGB"
        # Not every server turns a picture as its EXIF says; a plain PNG has none.
        is_upright = is_plain_rgb(content) or (
            image.format == "JPEG" and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        )
        if media_type is not None and is_small and is_upright:
            image.verify()  # check sums; no pixel is decoded
            return RecordedImage(content, media_type)
    return _limited(decode_image(content, image_key, frame), max_side)


def _limited(image: UInt8[np.ndarray, "_h _w 3"], max_side: int) -> UInt8[np.ndarray, "_h2 _w2 3"]:
    from PIL import Image

    longest = max(image.shape[:2])
    if longest <= max_side:
        return image
    height, width = (max(round(side * max_side / longest), 1) for side in image.shape[:2])
    small = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(small)
