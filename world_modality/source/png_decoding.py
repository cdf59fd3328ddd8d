"""PNG images through FFmpeg, which decodes them in two thirds of the time that Pillow needs.

Only what it is known to decode to Pillow's very pixels: whole files of 8-bit RGB. Everything else
is left to Pillow, and so are its error messages.
"""

import threading
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LAST_CHUNK = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# Bit depth 8, colour type RGB, deflate, adaptive filters, not interlaced: bytes 24 to 28 (PNG
# specification, 11.2.1).
RGB_HEADER = bytes([8, 2, 0, 0, 0])
# Chunks that change no pixel. Others may: a text or EXIF says that the image is to be turned.
PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME"}
_of_thread = threading.local()


def decode_png(content: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """Decode a PNG file, or return None where Pillow has to.

    Args:
        content: the file.
    """
    import av

    if not is_plain_rgb(content):
        return None
    packet = av.Packet(content)
    packet.is_keyframe = True  # otherwise it would be added to the image before, as in an APNG
    try:
        frames = _decoder().decode(packet)
    except av.error.FFmpegError:
        return None
    # Transparency makes it another format.
    if len(frames) != 1 or frames[0].format.name != "rgb24":
        return None
    pixels: np.ndarray = frames[0].to_ndarray()
    return pixels


def is_plain_rgb(content: bytes) -> bool:
    """Return whether a file is a whole PNG of 8-bit RGB in which nothing else changes the picture.

    Args:
        content: the file; its check sums are not compared.
    """
    is_whole = content.startswith(SIGNATURE) and content.endswith(LAST_CHUNK)
    if not is_whole or content[24:29] != RGB_HEADER:
        return False
    place = len(SIGNATURE)
    while place < len(content):
        if content[place + 4 : place + 8] not in PLAIN_CHUNKS:
            return False
        # Length, kind and check sum take four bytes each.
        place += int.from_bytes(content[place : place + 4], "big") + 12
    return place == len(content)


def _decoder() -> "VideoCodecContext":
    """Return this thread's decoder, which two threads may not share."""
    import av

    found: VideoCodecContext | None = getattr(_of_thread, "decoder", None)
    if found is None:
        found = av.VideoCodecContext.create("png", "r")
        found.thread_count = 1  # the caller decodes many images side by side
        found.options = {"err_detect": "crccheck+explode"}
        _of_thread.decoder = found
    return found
