"""Camera frames of a LeRobot dataset, decoded in blocks; they equal `LeRobotDataset[i]`."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8

from world_modality.source.image_decoding import image_blocks
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.source.video_decoding import video_blocks
from world_modality.system.errors import InvalidInputError


def frame_blocks(
    source: LeRobotSource, image_key: str, indices: Int[np.ndarray, " N"], block_size: int
) -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
    """Decode frames in ascending order, `block_size` at a time; memory does not grow with N.

    Args:
        source: the dataset.
        image_key: one of its cameras, stored as images or as video.
        indices: strictly ascending global frame indices.
        block_size: frames per block; the last block may be smaller.

    Raises:
        InvalidInputError: the camera measures depth, or a frame has other colours than RGB and
            grey, differs in size, or is not there.
    """
    if len(indices) > 1 and not (np.diff(indices) > 0).all():
        raise ValueError("frame indices must ascend strictly")
    feature = source.features[image_key]
    described = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    if described.get("is_depth_map") or described.get("video.is_depth_map"):
        raise InvalidInputError(
            f"camera {image_key} of {source.name} measures depth, expected colours; choose another "
            "with --image_key"
        )
    read = image_blocks if feature["dtype"] == "image" else video_blocks
    size: tuple[int, ...] | None = None
    done = 0
    for images in read(source, image_key, np.asarray(indices), block_size):
        block = _stack(images, image_key)
        size = size or block.shape[1:]
        if block.shape[1:] != size:
            raise InvalidInputError(
                f"camera {image_key} changes its image size: {size}, {block.shape[1:]}"
            )
        yield block
        done += len(block)
    if done != len(indices):
        raise InvalidInputError(
            f"camera {image_key} of {source.name} gave {done} of {len(indices)} frames, "
            f"{indices[0]} to {indices[-1]}; the dataset has {source.num_frames}"
        )


def frames_at(
    source: LeRobotSource, image_key: str, indices: Int[np.ndarray, " N"]
) -> UInt8[np.ndarray, "N H W 3"]:
    """Decode a few frames, in the order asked for; a frame may be asked for twice."""
    unique, inverse = np.unique(indices, return_inverse=True)
    return np.concatenate(list(frame_blocks(source, image_key, unique, 64)))[inverse]


def _stack(images: list[np.ndarray], image_key: str) -> np.ndarray:
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise InvalidInputError(f"camera {image_key} changes its image size: {sorted(sizes)}")
    return np.stack(images)
