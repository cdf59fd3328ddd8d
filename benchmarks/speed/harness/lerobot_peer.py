"""LeRobot's own ways to read a dataset: frame by frame, and as batches of its DataLoader."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, default_collate

from benchmarks.demos.dataset import image_feature, new_dataset, vector_feature
from benchmarks.demos.episode import DemoEpisode
from benchmarks.speed.harness.drawn import CAMERA, FPS, LIBERO_EPISODE_LENGTH, blocks
from world_modality.cache.contract import Cache
from world_modality.cache.frame_shapes import WindowShape
from world_modality.cache.frame_tensors import IGNORED_TOKEN, Batch, FrameTensors

VIDEO_BACKEND = "pyav"  # torchcodec, the default, needs FFmpeg's shared libraries


def record(cache: Cache, root: Path, image_size: int) -> None:
    """Write the frames of a drawn cache as a LeRobot dataset; image size 0 gives no camera."""
    columns = {
        "observation.embedding": cache.load("embeddings").astype(np.float32),
        "observation.state": cache.load("states"),
        "action": cache.load("actions"),
        # Twice, since lerobot 0.4 fails to save integer vectors of one element.
        "world_token": np.repeat(cache.load("world_tokens")[:, None], 2, axis=1).astype(np.int64),
    }
    features = {
        name: {**vector_feature([f"x{i}" for i in range(c.shape[1])]), "dtype": str(c.dtype)}
        for name, c in columns.items()
    }
    num_frames = len(columns["action"])
    if image_size:
        features[CAMERA] = image_feature(image_size, image_size, use_videos=False)
        ramp = np.arange(image_size, dtype=np.uint8)
        numbers = np.arange(num_frames)[:, None, None].astype(np.uint8)
        columns[CAMERA] = np.stack(np.broadcast_arrays(ramp[:, None], ramp, numbers), axis=-1)
    with new_dataset("bench/drawn", root, FPS, features, "drawn") as append:
        for start, stop in blocks(num_frames, LIBERO_EPISODE_LENGTH):
            part = {name: column[start:stop] for name, column in columns.items()}
            append(DemoEpisode("move", part, signals={}))


class LeRobotBatches:
    """Shuffled batches from LeRobot's DataLoader over a dataset that `record` wrote."""

    def __init__(self, root: Path, shape: WindowShape, batch_size: int) -> None:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        context = [i / FPS for i in range(1 - shape.context_frames, 1)]
        future = [k * shape.future_stride / FPS for k in range(shape.future_offset + 1)]
        windows = {
            "observation.embedding": context,
            "observation.state": context,
            "action": [h / FPS for h in range(shape.chunk_size)],
            "world_token": future,
        }
        self._dataset = LeRobotDataset("bench/drawn", root=root, delta_timestamps=windows)
        self._batch_size = batch_size

    def shuffled(self, num_workers: int) -> Iterator[Batch]:
        """Yield batches of one epoch after the other in new orders."""
        loader: DataLoader[dict[str, Any]] = DataLoader(
            self._dataset,
            batch_size=self._batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=num_workers,
        )
        while True:
            for items in loader:
                yield _to_batch(items)

    def at(self, frames: Int[np.ndarray, " B"]) -> Batch:
        """Return the windows around these frames."""
        return _to_batch(default_collate([self._dataset[int(t)] for t in frames]))


def _to_batch(items: dict[str, Any]) -> Batch:
    tokens = items["world_token"][..., 0]
    past_end = items["world_token_is_pad"][:, 1:]
    return Batch(
        embeddings=items["observation.embedding"],
        states=items["observation.state"],
        world_tokens=tokens[:, 0],
        future_tokens=tokens[:, 1:].masked_fill(past_end, IGNORED_TOKEN),
        actions=items["action"],
        action_is_pad=items["action_is_pad"],
        instructions=None,
    )


def require_same_windows(tensors: FrameTensors, peer: LeRobotBatches, shape: WindowShape) -> None:
    """Check that both sides give the same batch, ends of episodes included.

    Raises:
        AssertionError: the comparison would not be one.
    """
    frames = np.linspace(0, tensors.episodes.num_frames - 1, 9).astype(np.int64)
    ours, theirs = tensors.gather(torch.from_numpy(frames), shape), peer.at(frames)
    for name, value in vars(theirs).items():
        own = getattr(ours, name)
        if value is not None and not torch.equal(own.cpu().to(value.dtype), value):
            raise AssertionError(f"{name} of LeRobot's batch differs from ours")


def frame_by_frame(root: Path, num_frames: int) -> Callable[[], None]:
    """Return a turn that reads the first frames of a drawn dataset one after another."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset(f"bench/{root.name}", root=root, video_backend=VIDEO_BACKEND)

    def turn() -> None:
        for index in range(num_frames):
            dataset[index][CAMERA]

    return turn
