"""Keyframes of many episodes, decoded in one pass over the dataset."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from world_modality.errors import UserError
from world_modality.frame_decoding import frame_blocks, frames_at
from world_modality.lerobot_source import LeRobotSource

BLOCK_FRAMES = 32
Images = tuple[UInt8[np.ndarray, "_h _w 3"], ...]


def keyframe_images(
    source: LeRobotSource, image_key: str, frames: Sequence[Sequence[int]], max_side: int
) -> Iterator[Images | str]:
    """Yield each episode's keyframes, or what is wrong with them.

    The frames of all episodes are decoded in ascending order, a block at a time. Where a block
    cannot be decoded, its episodes are decoded one by one, so that a damaged image costs only its
    own episode.

    Args:
        source: the dataset.
        image_key: one of its cameras.
        frames: global frame indices by episode, ascending over all of them.
        max_side: larger images are made smaller, with their proportions.
    """
    done = 0
    while done < len(frames):
        try:
            for images in _decoded(source, image_key, frames[done:]):
                yield tuple(_limited(image, max_side) for image in images)
                done += 1
        except UserError:
            for episode in frames[done : done + BLOCK_FRAMES]:
                yield _alone(source, image_key, episode, max_side)
                done += 1


def _decoded(
    source: LeRobotSource, image_key: str, frames: Sequence[Sequence[int]]
) -> Iterator[list[np.ndarray]]:
    wanted = np.array([frame for episode in frames for frame in episode], dtype=np.int64)
    ready: list[np.ndarray] = []
    position = 0
    for block in frame_blocks(source, image_key, wanted, BLOCK_FRAMES):
        # Copies: a kept image must not keep its whole block in memory.
        ready += [np.array(image) for image in block]
        while position < len(frames) and len(ready) >= len(frames[position]):
            count = len(frames[position])
            yield ready[:count]
            ready = ready[count:]
            position += 1


def _alone(
    source: LeRobotSource, image_key: str, frames: Sequence[int], max_side: int
) -> Images | str:
    try:
        images = frames_at(source, image_key, np.array(frames, dtype=np.int64))
    except UserError as error:
        return str(error)
    return tuple(_limited(image, max_side) for image in images)


def _limited(image: UInt8[np.ndarray, "_h _w 3"], max_side: int) -> UInt8[np.ndarray, "_h2 _w2 3"]:
    from PIL import Image

    longest = max(image.shape[:2])
    if longest <= max_side:
        return image
    height, width = (max(round(side * max_side / longest), 1) for side in image.shape[:2])
    small = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(small)
