"""Videos whose true pixels are known: converted by the standards' equations, not by FFmpeg."""

from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from benchmarks.demo_dataset import unchanged_scheduling

FPS = 10
# Red's and blue's share of the luma, and the matrix's number in ITU-T H.273 (2: none is named).
MATRICES = {
    "untagged": (0.299, 0.114, 2),
    "BT.601": (0.299, 0.114, 6),
    "BT.709": (0.2126, 0.0722, 1),
    "BT.2020": (0.2627, 0.0593, 9),
    "FCC": (0.30, 0.11, 4),
    "SMPTE 240M": (0.212, 0.087, 7),
}
LOSSLESS = {
    "libx264": {"qp": "0"},
    "libx265": {"x265-params": "lossless=1:log-level=none"},
    "libaom-av1": {"cpu-used": "6", "crf": "0", "aom-params": "lossless=1"},
    "libvpx-vp9": {"lossless": "1"},
    "libsvtav1": {"crf": "5", "preset": "12"},  # has no lossless mode in the releases at hand
    "mpeg4": {"qscale": "1"},
    "mjpeg": {"qscale": "1"},
}


@dataclass(frozen=True)
class VideoFormat:
    """How a video stores its pixels.

    Attributes:
        codec: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the pixel format.
        matrix: one of `MATRICES`.
        full: values use the full range, and are tagged so.
        size: height, width.
        tag: the number written as the matrix; by default the matrix's own.
    """

    codec: str
    pixels: str
    matrix: str = "untagged"
    full: bool = False
    size: tuple[int, int] = (48, 64)
    tag: int | None = field(default=None, kw_only=True)

    @property
    def bits(self) -> int:
        return next((bits for bits in (10, 12) if f"{bits}le" in self.pixels), 8)


def smooth_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    """Draw uint8 RGB frames of smooth colours, which chroma of half the size keeps."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    frames = [
        [30 + 190 * rows, 220 - 160 * columns, 40 + 20 * i + 130 * (rows + columns) / 2]
        for i in range(num_frames)
    ]
    return np.round(np.moveaxis(np.array(frames), 1, -1)).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, video: VideoFormat) -> None:
    """Encode uint8 RGB frames [N, H, W, 3], without a loss where the codec can."""
    _, height, width, _ = frames.shape
    tag = video.tag or (0 if video.pixels.startswith("gbr") else MATRICES[video.matrix][2])
    with unchanged_scheduling(), av.open(str(path), "w") as container:
        stream = container.add_stream(video.codec, rate=FPS, options=LOSSLESS[video.codec])
        stream.width, stream.height, stream.pix_fmt = width, height, video.pixels
        if tag != 2:
            stream.codec_context.colorspace = tag
            stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
        if tag != 2 or video.full:
            stream.codec_context.color_range = 2 if video.full else 1
        for index, image in enumerate(frames):
            frame = av.VideoFrame(width, height, video.pixels)
            for plane, values in zip(frame.planes, _planes(image / 255, video), strict=True):
                dtype = np.uint8 if video.bits == 8 else np.uint16
                stored = np.zeros((plane.height, plane.line_size // dtype().itemsize), dtype)
                stored[:, : values.shape[1]] = np.clip(np.round(values), 0, 2**video.bits - 1)
                plane.update(stored.tobytes())
            frame.pts, frame.colorspace, frame.color_range = index, tag, 2 if video.full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _planes(rgb: np.ndarray, video: VideoFormat) -> list[np.ndarray]:
    """Return the planes of an image in [0, 1]: BT.601, section 2.5, with the matrix's shares."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    if video.pixels.startswith("gbr"):
        return [plane * (2**video.bits - 1) for plane in (green, blue, red)]
    of_red, of_blue, _ = MATRICES[video.matrix]
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = [(blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red)]
    scale = 2 ** (video.bits - 8)
    black, levels = (0, 2**video.bits - 1) if video.full else (16 * scale, 219 * scale)
    planes = [black + levels * luma]
    if not video.pixels.startswith("gray"):
        levels = 2**video.bits - 1 if video.full else 224 * scale
        halved = [] if "444" in video.pixels else [1] if "422" in video.pixels else [0, 1]
        planes += [_halve(128 * scale + levels * values, halved) for values in chroma]
    return planes


def _halve(values: np.ndarray, axes: list[int]) -> np.ndarray:
    for axis in axes:
        padding = [(0, values.shape[i] % 2 if i == axis else 0) for i in (0, 1)]
        padded = np.moveaxis(np.pad(values, padding, mode="edge"), axis, 0)
        values = np.moveaxis((padded[::2] + padded[1::2]) / 2, 0, axis)
    return values
