"""PNG through FFmpeg, against Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from world_modality.source.image_decoding import PNG_SIGNATURE, decode_png

WIDTH, HEIGHT = 23, 40


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(seed, before_data=b"", num_data_chunks=1):
    """A file of random bytes whose rows use each of PNG's five filters."""
    rows = np.random.default_rng(seed).integers(0, 256, (HEIGHT, 1 + 3 * WIDTH), dtype=np.uint8)
    rows[:, 0] = np.arange(HEIGHT) % 5
    stream = zlib.compress(rows.tobytes())
    size = -(-len(stream) // num_data_chunks)
    data = [chunk(b"IDAT", stream[i : i + size]) for i in range(0, len(stream), size)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0))
    return PNG_SIGNATURE + header + before_data + b"".join(data) + chunk(b"IEND", b"")


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "png", **options)
    return buffer.getvalue()


def by_pillow(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_every_filter_and_chunking_gives_pillows_pixels_image_after_image():
    gamma = chunk(b"gAMA", struct.pack(">I", 45455))
    files = [png(0), png(1, num_data_chunks=7), png(2, before_data=gamma), png(3)]
    files.append(saved(Image.fromarray(by_pillow(png(4))[:9, :5]), compress_level=1))
    for content in files:
        np.testing.assert_array_equal(decode_png(content), by_pillow(content))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "1"])
def test_what_is_not_8_bit_rgb_is_left_to_pillow(mode):
    assert decode_png(saved(Image.new(mode, (WIDTH, HEIGHT)))) is None


def test_transparency_and_other_formats_are_left_to_pillow():
    assert decode_png(png(0, before_data=chunk(b"tRNS", bytes(6)))) is None
    assert decode_png(png(0, before_data=chunk(b"tEXt", b"Raw profile type exif\0"))) is None
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(buffer, "jpeg")
    assert decode_png(buffer.getvalue()) is None


def test_a_damaged_file_is_left_to_pillow_wherever_the_damage_is():
    content = png(0)
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1
        assert decode_png(bytes(flipped)) is None, f"byte {place}"
        assert decode_png(content[:place]) is None, f"cut at {place}"
        without_rest = content[:place] + content[-12:]
        found = decode_png(without_rest)
        if found is not None:  # only the last checksum is missing
            np.testing.assert_array_equal(found, by_pillow(without_rest), f"gap from {place}")
    np.testing.assert_array_equal(decode_png(content), by_pillow(content))
