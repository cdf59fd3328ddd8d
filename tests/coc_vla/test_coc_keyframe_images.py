import base64
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coc_vla.authors.pictures import RecordedImage, image_url
from coc_vla.labels.keyframe_images import keyframe_images
from tests.fixtures.lerobot import make_dataset
from world_modality.source.lerobot_adapter import open_dataset

CAMERA = "observation.image"
FRAMES = [[0, 6, 11], [12, 24], [30]]


@pytest.fixture
def root(tmp_path):
    return make_dataset(tmp_path / "tiny", num_episodes=3)


def stored(root):
    (path,) = root.glob("data/*/*.parquet")
    return [image["bytes"] for image in pq.read_table(path).column(CAMERA).to_pylist()]


def store(root, changes):
    """Put other files in the place of some frames' images."""
    (path,) = root.glob("data/*/*.parquet")
    table = pq.read_table(path)
    images = table.column(CAMERA).to_pylist()
    for frame, content in changes.items():
        images[frame]["bytes"] = content
    column = table.schema.get_field_index(CAMERA)
    field = table.schema.field(column)
    pq.write_table(table.set_column(column, field, pa.array(images, field.type)), path)


def read(root, max_side=768, as_recorded=True):
    source = open_dataset("local/tiny", dataset_root=root)
    return list(keyframe_images(source, CAMERA, FRAMES, max_side, as_recorded=as_recorded))


def test_small_image_files_are_handed_on_as_they_are(root):
    files = stored(root)
    assert read(root) == [
        tuple(RecordedImage(files[frame], "image/png") for frame in episode) for episode in FRAMES
    ]
    url = image_url(read(root)[0][1])
    assert url == "data:image/png;base64," + base64.b64encode(files[6]).decode()


def test_large_ones_and_other_kinds_are_decoded(root):
    small = read(root, max_side=24)
    assert [image.shape for episode in small for image in episode] == [(24, 20, 3)] * 6
    buffer = io.BytesIO()
    Image.open(io.BytesIO(stored(root)[6])).save(buffer, "bmp")
    store(root, {6: buffer.getvalue()})
    first, *_ = read(root)
    assert isinstance(first[0], RecordedImage)
    assert np.array_equal(first[1], Image.open(io.BytesIO(buffer.getvalue())))


def test_files_and_pixels_show_the_same(root):
    files, pixels = read(root), read(root, as_recorded=False)
    for episode, expected in zip(files, pixels, strict=True):
        for file, image in zip(episode, expected, strict=True):
            assert np.array_equal(Image.open(io.BytesIO(file.content)), image)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_file_that_is_to_be_turned_is_decoded(root, kind):
    """A server that does not know the tag would show it on its side."""
    image = Image.open(io.BytesIO(stored(root)[6]))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    buffer = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, kind, exif=exif)
    store(root, {6: buffer.getvalue()})
    found = read(root)[0][1]
    assert np.abs(found.astype(float) - np.asarray(image)).mean() < 8


def flipped(content):
    """Change one byte in the middle of a file, which only its check sum shows."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("as_recorded", [True, False])
@pytest.mark.parametrize("damage", [lambda c: b"no image", lambda c: c[: len(c) // 2], flipped])
def test_a_damaged_file_costs_its_own_episode(root, damage, as_recorded):
    store(root, {24: damage(stored(root)[24])})
    first, second, third = read(root, as_recorded=as_recorded)
    assert (len(first), len(third)) == (3, 1)
    assert "frame 24 of camera observation.image" in second
