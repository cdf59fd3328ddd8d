"""Keyframes of many episodes, read in one pass over the dataset."""

import io
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from jaxtyping import UInt8

from coc_vla.authors.pictures import Picture, Pictures, RecordedImage
from world_modality.source.frame_decoding import frame_blocks
from world_modality.source.image_decoding import (
    decode_image,
    encoded_images,
    is_plain_rgb,
    refused_if_damaged,
)
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import UserError

BLOCK_FRAMES = 32
# What browsers and inference servers read.
_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg"}


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
        as_recorded: hand on the files of a camera that is stored as images, where they are small
            enough, without decoding them.
    """
    is_file = as_recorded and source.features[image_key]["dtype"] == "image"
    read = _files if is_file else _pixels
    done = 0
    while done < len(frames):
        try:
            for pictures in read(source, image_key, frames[done:], max_side):
                yield pictures
                done += 1
        except UserError:
            for episode in frames[done : done + BLOCK_FRAMES]:
                try:
                    yield next(read(source, image_key, [episode], max_side))
                except UserError as error:
                    yield str(error)
                done += 1


def _pixels(
    source: LeRobotSource, image_key: str, frames: Sequence[Sequence[int]], max_side: int
) -> Iterator[Pictures]:
    # Copies: a kept image must not keep its whole block in memory.
    images = (
        _limited(np.array(image), max_side)
        for block in frame_blocks(source, image_key, _joined(frames), BLOCK_FRAMES)
        for image in block
    )
    for episode in frames:
        yield tuple(islice(images, len(episode)))


def _files(
    source: LeRobotSource, image_key: str, frames: Sequence[Sequence[int]], max_side: int
) -> Iterator[Pictures]:
    wanted = _joined(frames)
    contents = encoded_images(source, image_key, wanted)
    images = (
        _file(content, image_key, frame, max_side)
        for content, frame in zip(contents, wanted.tolist(), strict=True)
    )
    for episode in frames:
        yield tuple(islice(images, len(episode)))


def _joined(frames: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([frame for episode in frames for frame in episode], dtype=np.int64)


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
