"""A camera's images of one episode as PNG: encoded once, by the process that rendered them."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, PngImagePlugin

COMPRESS_LEVEL = 1
"""Of zlib: the pixels are the same at a third of the default level's time, in 10 % more room."""


@dataclass(frozen=True)
class PngImages:
    """Images one behind the other; `images[i]` is what LeRobot takes for a frame's image.

    Attributes:
        encoded: bytes of all PNG files.
        ends: where each ends.
    """

    encoded: UInt8[np.ndarray, " bytes"]
    ends: Int64[np.ndarray, " N"]

    @classmethod
    def encode(cls, images: UInt8[np.ndarray, "N H W 3"]) -> "PngImages":
        """Encode RGB images, without loss."""
        stream = io.BytesIO()
        ends = []
        for image in images:
            Image.fromarray(image).save(stream, "png", compress_level=COMPRESS_LEVEL)
            ends.append(stream.tell())
        return cls(np.frombuffer(stream.getvalue(), np.uint8), np.array(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> "EncodedImage":
        return EncodedImage(self._bytes(index))

    def decode(self) -> UInt8[np.ndarray, "N H W 3"]:
        """Return the pixels."""
        files = (io.BytesIO(self._bytes(i)) for i in range(len(self)))
        return np.stack([np.asarray(Image.open(file)) for file in files])

    def _bytes(self, index: int) -> bytes:
        begin = int(self.ends[index - 1]) if index > 0 else 0
        return self.encoded[begin : int(self.ends[index])].tobytes()


class EncodedImage(PngImagePlugin.PngImageFile):
    """A PNG file in memory, which is saved as it is: encoding again costs 3 ms."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._content = content

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Write the file's own bytes to a path, whatever compression is asked for."""
        Path(fp).write_bytes(self._content)
