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
_of_thread = threading.local()


def decode_png(content: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """Decode a PNG file, or return None where Pillow has to.

    Args:
        content: the file.
    """
    import av

    is_plain = content.startswith(SIGNATURE) and content[24:29] == RGB_HEADER
    if not is_plain or not content.endswith(LAST_CHUNK):
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
