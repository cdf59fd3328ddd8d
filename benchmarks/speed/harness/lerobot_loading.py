"""LeRobot's own way to batches: its DataLoader over a dataset recorded here, with our windows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    import torch

    from world_modality.cache.frame_shapes import WindowShape
    from world_modality.cache.frame_tensors import Batch, FrameTensors

FPS = 20
CAMERA = "observation.image"
EPISODE_LENGTH = 80


@dataclass(frozen=True)
class DrawnFrames:
    """Random frames that both sides read: as arrays here, as a recorded dataset there."""

    num_frames: int
    embedding_dim: int
    num_world_tokens: int

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a cache of these frames holds; S 8 and A 7 are LIBERO's."""
        rng = np.random.default_rng(0)
        size = (self.num_frames, self.embedding_dim)
        return {
            "embeddings": rng.standard_normal(size, dtype=np.float32).astype(np.float16),
            "states": rng.standard_normal((self.num_frames, 8), dtype=np.float32),
            "actions": rng.standard_normal((self.num_frames, 7), dtype=np.float32),
            "world_tokens": rng.integers(0, self.num_world_tokens, self.num_frames, dtype=np.int32),
        }

    def tensors(self, device: "torch.device") -> "FrameTensors":
        """Return the frames on the device, as training has them."""
        from world_modality.cache.frame_tensors import FrameTensors
        from world_modality.source.episodes import Episodes

        episode_index = np.arange(self.num_frames) // EPISODE_LENGTH
        episodes = Episodes.from_frames(episode_index, np.zeros_like(episode_index))
        return FrameTensors(self.arrays(), episodes, device)

    def record(self, root: Path, image_size: int) -> None:
        """Write them through `LeRobotDataset.create`; with image size 0 without a camera."""
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        arrays = self.arrays()
        features = {
            "observation.embedding": _vector("float32", self.embedding_dim),
            "observation.state": _vector("float32", 8),
            "action": _vector("float32", 7),
            # Twice, since lerobot 0.4 fails to save integer vectors of one element.
            "world_token": _vector("int64", 2),
        }
        if image_size:
            shape, names = (image_size, image_size, 3), ["height", "width", "channels"]
            features[CAMERA] = {"dtype": "image", "shape": shape, "names": names}
        dataset = LeRobotDataset.create(
            "bench/drawn", fps=FPS, features=features, root=root, use_videos=False
        )
        ramp = np.arange(image_size, dtype=np.uint8)
        for t in range(self.num_frames):
            frame = {
                "observation.embedding": arrays["embeddings"][t].astype(np.float32),
                "observation.state": arrays["states"][t],
                "action": arrays["actions"][t],
                "world_token": np.repeat(arrays["world_tokens"][t], 2).astype(np.int64),
                "task": "move",
            }
            if image_size:
                image = np.stack(np.broadcast_arrays(ramp[:, None], ramp, np.uint8(t % 256)), -1)
                frame[CAMERA] = np.ascontiguousarray(image)
            dataset.add_frame(frame)
            if (t + 1) % EPISODE_LENGTH == 0 or t + 1 == self.num_frames:
                dataset.save_episode()
        dataset.finalize()


class LeRobotBatches:
    """Shuffled batches from LeRobot's DataLoader over a dataset that `DrawnFrames` recorded."""

    def __init__(self, root: Path, shape: "WindowShape", batch_size: int) -> None:
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

    def shuffled(self, num_workers: int) -> Iterator["Batch"]:
        """Yield batches of one epoch after the other in new orders."""
        from torch.utils.data import DataLoader

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

    def at(self, frames: Int[np.ndarray, " B"]) -> "Batch":
        """Return the windows around these frames."""
        from torch.utils.data import default_collate

        return _to_batch(default_collate([self._dataset[int(t)] for t in frames]))


def _to_batch(items: dict[str, Any]) -> "Batch":
    from world_modality.cache.frame_tensors import IGNORED_TOKEN, Batch

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


def require_same_windows(
    tensors: "FrameTensors", peer: LeRobotBatches, shape: "WindowShape"
) -> None:
    """Check that both sides give the same batch, ends of episodes included.

    Raises:
        AssertionError: the comparison would not be one.
    """
    import torch

    frames = np.linspace(0, tensors.episodes.num_frames - 1, 9).astype(np.int64)
    ours, theirs = tensors.gather(torch.from_numpy(frames), shape), peer.at(frames)
    for name, value in vars(theirs).items():
        own = getattr(ours, name)
        if value is not None and not torch.equal(own.cpu().to(value.dtype), value):
            raise AssertionError(f"{name} of LeRobot's batch differs from ours")


def _vector(dtype: str, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (size,), "names": [f"x{i}" for i in range(size)]}
