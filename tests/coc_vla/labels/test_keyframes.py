import base64
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coc_vla.authors.vlm import RecordedImage, image_url
from coc_vla.events.motion import EpisodeMotion, GripperEvent
from coc_vla.labels.keyframes import (
    event_keyframes,
    keyframe_images,
    uniform_keyframes,
    velocity_minima,
)
from tests.fixtures.coc import motion_with_stops
from tests.fixtures.lerobot import make_dataset
from world_modality.source.lerobot_adapter import open_dataset

CAMERA = "observation.image"
FRAMES = [[0, 6, 11], [12, 24], [30]]


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_uniform_keyframes_are_distinct_ascending_and_inside(num_frames, count):
    frames = uniform_keyframes(num_frames, count)
    assert list(frames) == sorted(set(frames))
    assert len(frames) == min(num_frames, count)
    assert frames[0] == 0
    assert frames[-1] < num_frames
    assert uniform_keyframes(101, 3) == (0, 50, 100), "start, middle and end"


def test_event_keyframes_hold_ends_gripper_events_and_pauses():
    motion = motion_with_stops(GripperEvent(55, "close"))
    assert event_keyframes(motion, 5) == pytest.approx((0, 40, 55, 70, 119), abs=2)
    assert event_keyframes(motion, 3) == (0, 55, 119)
    pauses = velocity_minima(motion.positions, motion.fps)
    assert sorted(pauses) == pytest.approx([40, 70], abs=2)


@pytest.mark.parametrize(
    ("num_frames", "expected"), [(81, (0, 20, 40, 60, 80)), (2, (0, 1)), (1, (0,))]
)
def test_event_keyframes_of_a_hand_that_never_stops_fill_the_gaps(num_frames, expected):
    positions = np.arange(num_frames)[:, None] * np.ones(3)
    assert event_keyframes(EpisodeMotion(positions, (), 20.0), 5) == expected


@pytest.fixture
def root(tmp_path):
    return make_dataset(tmp_path / "tiny", num_episodes=3)


def stored(root):
    (path,) = root.glob("data/*/*.parquet")
    return [image["bytes"] for image in pq.read_table(path).column(CAMERA).to_pylist()]


def store(root, changes):
    """Replace the image files of some frames."""
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
