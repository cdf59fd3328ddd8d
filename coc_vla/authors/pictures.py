"""Keyframes as they are handed on: pixels, or the file that the recording holds."""

import base64
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL import Image

JPEG_QUALITY = 95


@dataclass(frozen=True)
class RecordedImage:
    """An image file as it is in the dataset.

    Attributes:
        content: the file.
        media_type: `image/png` or `image/jpeg`.
    """

    content: bytes = field(repr=False)
    media_type: str


Picture = UInt8[np.ndarray, "_h _w 3"] | RecordedImage
Pictures = tuple[Picture, ...]


def image_url(picture: Picture) -> str:
    """Return a picture as a `data:` address; pixels as JPEG without subsampling of colours."""
    if isinstance(picture, RecordedImage):
        return _data_url(picture.content, picture.media_type)
    buffer = io.BytesIO()
    pil_image(picture).save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0)
    return _data_url(buffer.getvalue(), "image/jpeg")


def pil_image(picture: Picture) -> "Image.Image":
    """Return a picture for a library that takes Pillow's images."""
    from PIL import Image

    if isinstance(picture, RecordedImage):
        return Image.open(io.BytesIO(picture.content))
    return Image.fromarray(picture)


def _data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
