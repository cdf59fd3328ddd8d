"""Frames of every kind of video and image file, against the true pixels and against LeRobot's."""

import io
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.fixtures.lerobot import change_feature, make_dataset, put_column
from tests.fixtures.video import VideoFormat, smooth_frames, write_video
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError, MissingFileError

NUM_FRAMES = 3
SIZE = (48, 64)
NARROW = (46, 58)  # torchcodec converts in another way where 32 does not divide the width
VIDEOS = {
    "av1_as_lerobot_writes_it": VideoFormat("libsvtav1", "yuv420p"),
    "av1_709": VideoFormat("libsvtav1", "yuv420p", "BT.709"),
    "av1_709_full": VideoFormat("libaom-av1", "yuv420p", "BT.709", True, NARROW),
    "av1_601_full_wide": VideoFormat("libaom-av1", "yuv420p", "BT.601", True),
    "av1_2020_10_bits": VideoFormat("libaom-av1", "yuv420p10le", "BT.2020"),
    "av1_odd_size": VideoFormat("libaom-av1", "yuv420p", size=(45, 61)),
    "av1_grey": VideoFormat("libaom-av1", "gray", "BT.709"),
    "av1_grey_full_10_bits": VideoFormat("libaom-av1", "gray10le", "BT.709", True),
    "h264": VideoFormat("libx264", "yuv420p"),
    "h264_601": VideoFormat("libx264", "yuv420p", "BT.601"),
    "h264_709": VideoFormat("libx264", "yuv420p", "BT.709"),
    "h264_full": VideoFormat("libx264", "yuvj420p", full=True),
    "h264_709_444": VideoFormat("libx264", "yuv444p", "BT.709"),
    "h264_240m_422_10_bits_full": VideoFormat("libx264", "yuv422p10le", "SMPTE 240M", True, NARROW),
    "hevc_2020": VideoFormat("libx265", "yuv420p", "BT.2020"),
    "hevc_709_12_bits_full": VideoFormat("libx265", "yuv420p12le", "BT.709", True, NARROW),
    "hevc_rgb": VideoFormat("libx265", "gbrp", full=True),
    "vp9_2020_444_full": VideoFormat("libvpx-vp9", "yuv444p", "BT.2020", True, NARROW),
    "vp9_fcc": VideoFormat("libvpx-vp9", "yuv420p", "FCC"),
    "mpeg4_709_in_the_container_alone": VideoFormat("mpeg4", "yuv420p", "BT.709"),
    "mjpeg": VideoFormat("mjpeg", "yuvj420p", full=True),
}
# Where torchcodec 0.10 overlooks the range that the file names, and is 6 of 255 levels off.
WITHOUT_RANGE_IN_TORCHCODEC = {"av1_601_full_wide", "av1_grey"}
PRINT_FRAMES = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
frames = {}
for root in sys.argv[2:]:
    dataset = LeRobotDataset("local/tiny", root=root, video_backend="torchcodec")
    items = [dataset[i] for i in range(len(dataset))]
    for key in dataset.meta.camera_keys:
        frames[key] = np.moveaxis(np.stack([np.asarray(item[key]) for item in items]), 1, -1)
np.savez(sys.argv[1], **frames)
"""


def saved(pixels, kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def xmp_turned(orientation):
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    return text


def png_of_16_bits(pixels):
    return cv2.imencode(".png", pixels[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


# How each stores uint8 RGB pixels; tag 274 of EXIF (0x0112) says how they are to be turned.
IMAGES = {
    "png": lambda x: saved(x, "png"),
    "png_exif": lambda x: saved(np.rot90(x), "png", exif=turned(6)),
    "png_xmp": lambda x: saved(np.rot90(x, 2), "png", pnginfo=xmp_turned(3)),
    "png_opaque": lambda x: saved(x, "png", "RGBA"),
    "png_16_bits": png_of_16_bits,
    "png_grey": lambda x: saved(x, "png", "L"),
    "png_grey_opaque": lambda x: saved(x, "png", "LA"),
    "png_black_and_white": lambda x: saved(x, "png", "1"),
    "jpeg": lambda x: saved(x, "jpeg", quality=95),
    "jpeg_exif": lambda x: saved(np.rot90(x, -1), "jpeg", quality=95, exif=turned(8)),
    "jpeg_mirrored": lambda x: saved(x[:, ::-1], "jpeg", quality=95, exif=turned(2)),
    "jpeg_grey": lambda x: saved(x, "jpeg", "L", quality=95),
    "webp": lambda x: saved(x, "webp", lossless=True),
    "webp_exif": lambda x: saved(x[::-1], "webp", quality=95, exif=turned(4).tobytes()),
    "tiff": lambda x: saved(x, "tiff", compression="tiff_lzw"),
    "bmp": lambda x: saved(x, "bmp"),
}
# What is not what LeRobot hands on, or has no 8-bit colours.
REFUSED_IMAGES = {
    "PNG of mode P;": lambda x: saved(x, "png", "P"),
    "GIF of mode P;": lambda x: saved(x, "gif", "P"),
    "JPEG of mode CMYK;": lambda x: saved(x, "jpeg", "CMYK"),
    "TIFF of mode F;": lambda x: saved(x, "tiff", "F"),
    "PNG of mode I;16;": lambda x: cv2.imencode(".png", x[..., 0].astype(np.uint16))[1].tobytes(),
    "PNG of mode RGBA, partly transparent;": lambda x: saved(
        np.concatenate([x, x[..., :1]], -1), "png", "RGBA"
    ),
}


def camera(name):
    return f"observation.images.{name}"


def record(root, names, dtype):
    cameras = tuple(map(camera, names))
    sizes = {"num_episodes": 1, "num_frames": NUM_FRAMES, "image_size": SIZE}
    return make_dataset(root, camera_dtype=dtype, cameras=cameras, **sizes)


def store_files(root, key, files):
    """Put other files into a camera's column, in its own type."""
    cells = [{"bytes": file, "path": None} for file in files]
    put_column(root, key, pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()})))


def true_frames(name):
    if name in IMAGES:
        frames = smooth_frames(NUM_FRAMES, *SIZE)
        mode = "1" if "white" in name else "L" if "grey" in name else "RGB"
        images = [Image.fromarray(frame).convert(mode).convert("RGB") for frame in frames]
        return np.stack([np.asarray(image) for image in images]).astype(float)
    frames = smooth_frames(NUM_FRAMES, *VIDEOS[name].size).astype(float)
    if VIDEOS[name].pixels.startswith("gray"):
        frames[:] = frames @ [[0.2126], [0.7152], [0.0722]]
    return frames


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """One dataset of videos and one of images, with a camera for each format."""
    folder = tmp_path_factory.mktemp("formats")
    roots = {
        "video": record(folder / "video", VIDEOS, "video"),
        "image": record(folder / "image", IMAGES, "image"),
    }
    for name, video in VIDEOS.items():
        (path,) = (roots["video"] / "videos" / camera(name)).glob("*/*.mp4")
        write_video(path, smooth_frames(NUM_FRAMES, *video.size), video)
    for name, encode in IMAGES.items():
        files = [encode(frame) for frame in smooth_frames(NUM_FRAMES, *SIZE)]
        store_files(roots["image"], camera(name), files)
    return roots


@pytest.fixture(scope="module")
def lerobots_frames(roots, tmp_path_factory):
    """LeRobotDataset's frames by camera [N, H, W, channels] in [0, 1], decoded by torchcodec.

    torchcodec finds FFmpeg's libraries by their plain names when it is imported; PyAV's wheel has
    them under other names.
    """
    if find_spec("torchcodec") is None:
        pytest.skip("torchcodec is not installed")
    folder = tmp_path_factory.mktemp("libraries")
    wheels = Path(distribution("av").locate_file("av.libs"))
    for path in wheels.glob("lib[as]*.so.*"):
        found = re.fullmatch(r"(lib(?:av|sw)[a-z]+)-\w+(\.so\.\d+)[.\d]*", path.name)
        if found:
            (folder / "".join(found.groups())).symlink_to(path)
    searched = [str(folder), str(wheels), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, searched))}
    output = folder / "frames.npz"
    command = [sys.executable, "-c", PRINT_FRAMES, str(output), *map(str, roots.values())]
    subprocess.run(command, check=True, env=environment)
    return dict(np.load(output))


def our_frames(roots, name):
    root = roots["video" if name in VIDEOS else "image"]
    return frames_of(root, camera(name)).astype(float)


@pytest.mark.parametrize("name", [*VIDEOS, *IMAGES])
def test_frames_are_the_true_pixels_within_the_codecs_error(roots, name):
    error = np.abs(our_frames(roots, name) - true_frames(name))
    # FFmpeg's own conversion rounds down twice; a wrong matrix or range costs four levels and more.
    assert error.mean() < 2.5
    assert error.max() <= 16


@pytest.mark.parametrize(
    "name", [name for name in [*VIDEOS, *IMAGES] if name not in WITHOUT_RANGE_IN_TORCHCODEC]
)
def test_frames_are_lerobots_within_rounding(roots, lerobots_frames, name):
    expected = 255 * lerobots_frames[camera(name)]
    if expected.shape[-1] in (2, 4):
        expected = expected[..., :-1]  # opaque
    difference = np.abs(our_frames(roots, name) - expected)  # grey has one channel there
    assert difference.max() < 1.01


def frames_of(root, key=None):
    source = open_dataset("local/tiny", dataset_root=root)
    return frames_at(source, source.camera(key), np.arange(NUM_FRAMES))


@pytest.fixture
def image_root(tmp_path):
    return record(tmp_path / "image", ["only"], "image")


@pytest.fixture
def video_path(tmp_path):
    record(tmp_path / "video", ["only"], "video")
    return next((tmp_path / "video").glob("videos/*/*/*.mp4"))


@pytest.mark.parametrize("words", REFUSED_IMAGES)
def test_an_image_that_is_no_8_bit_rgb_or_grey_is_refused_with_its_format(image_root, words):
    frames = smooth_frames(NUM_FRAMES, *SIZE)
    files = [saved(frames[0], "png"), REFUSED_IMAGES[words](frames[1]), saved(frames[2], "png")]
    store_files(image_root, camera("only"), files)
    with pytest.raises(InvalidInputError, match=f"frame 1 of camera .*only is {words}"):
        frames_of(image_root)


# What `datasets` takes for an image: its file, where it lies, or both.
CELLS = {
    "struct": lambda path: ({"bytes": None, "path": path.name}, None),
    "bytes in struct": lambda path: ({"bytes": path.read_bytes()}, None),
    "path in struct": lambda path: ({"path": path.name}, None),
    "relative path": lambda path: (path.name, None),
    "path": lambda path: (str(path), None),
    "bytes": lambda path: (path.read_bytes(), None),
    "large bytes": lambda path: (path.read_bytes(), pa.large_binary()),
}


@pytest.mark.parametrize("kind", CELLS)
def test_an_image_is_found_however_datasets_stores_it(image_root, kind):
    frames = smooth_frames(NUM_FRAMES, *SIZE)
    paths = [image_root / f"{i}.png" for i in range(NUM_FRAMES)]
    for path, frame in zip(paths, frames, strict=True):
        path.write_bytes(saved(frame, "png"))
    cells, (column_type, *_) = zip(*map(CELLS[kind], paths), strict=True)
    put_column(image_root, camera("only"), pa.array(cells, column_type))
    np.testing.assert_array_equal(frames_of(image_root), frames)
    if "bytes" not in kind:
        paths[1].unlink()
        with pytest.raises(MissingFileError, match=r"names an image that cannot be read: .*1\.png"):
            frames_of(image_root)
    put_column(image_root, camera("only"), pa.array([1.5] * NUM_FRAMES))
    with pytest.raises(InvalidInputError, match="has no image"):
        frames_of(image_root)


def test_colours_may_change_within_a_video(video_path, tmp_path):
    """Episodes of several recordings are put into one file without encoding them again."""
    frames = smooth_frames(NUM_FRAMES, *SIZE)
    parts = [
        (VideoFormat("libaom-av1", "yuv444p", "BT.709", True), frames[:1]),
        (VideoFormat("libaom-av1", "yuv444p", "BT.601"), frames[1:2]),
        (VideoFormat("libaom-av1", "yuv444p", "BT.2020"), frames[2:]),
    ]
    with av.open(str(video_path), "w") as output:
        stream = None
        for index, (video, part) in enumerate(parts):
            write_video(tmp_path / "part.mp4", part, video)
            with av.open(str(tmp_path / "part.mp4")) as source:
                stream = stream or output.add_stream_from_template(
                    source.streams.video[0], opaque=True
                )
                (packet,) = [packet for packet in source.demux() if packet.size]
                packet.pts = packet.dts = index * packet.duration
                packet.stream = stream
                output.mux(packet)
    assert np.abs(frames_of(video_path.parents[3]).astype(float) - frames).mean() < 0.5


UPRIGHT = bytes.fromhex("0001000000000000000000000000000000010000")
QUARTER_TURN = bytes.fromhex("000000000001000000000000ffff000000000000")


def other_matrix(path):
    ycgco = VideoFormat("libx264", "yuv444p", tag=8)
    write_video(path, smooth_frames(NUM_FRAMES, *SIZE), ycgco)


def turned_track(path):
    header, track = path.read_bytes().split(b"tkhd")
    path.write_bytes(header + b"tkhd" + track.replace(UPRIGHT, QUARTER_TURN, 1))


def filled_up(path):
    """Damage a frame so that the decoder has to fill up a part of it."""
    frames = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, *SIZE, 3), dtype=np.uint8)
    write_video(path, frames, VideoFormat("libx264", "yuv420p"))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux() if packet.size]
    content = bytearray(path.read_bytes())
    start = packets[1][0] + packets[1][1] // 2
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)


REFUSED_VIDEOS = {
    r"file-000\.mp4 holds yuv444p with colour matrix 8 ": other_matrix,
    r"\.mp4 is to be turned by -90 degrees": turned_track,
    r"\.mp4 has no video that FFmpeg can decode": lambda path: path.write_bytes(
        path.read_bytes().replace(b"av01", b"xy01")
    ),
    r"\.mp4 is damaged, or FFmpeg cannot decode it": lambda path: path.write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"
    ),
    r"damaged: its frame at 0\.1000 s is not whole": filled_up,
    r"only of local/tiny measures depth.*--image_key": lambda path: change_feature(
        path.parents[3], camera("only"), info={"is_depth_map": True}
    ),
}


@pytest.mark.parametrize("told", REFUSED_VIDEOS)
def test_a_video_that_is_damaged_or_means_something_else_is_refused(video_path, told):
    REFUSED_VIDEOS[told](video_path)
    with pytest.raises(InvalidInputError, match=told):
        frames_of(video_path.parents[3])
