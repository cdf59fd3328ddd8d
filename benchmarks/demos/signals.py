"""What a recorder knows of each frame beside the features that a policy may see.

One array per signal, `meta/signals/<name>.f32.npy` with shape [N, dim] over the dataset's global
frame index:

executed_action   the action that was executed (noise included), which a replay needs; the dataset's
                  `action` is what a policy learns
contact           1 where the robot touches something, after the action
success           1 where the task is solved, after the action
object_height     height of the object that the task is about, in m, after the action
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from world_modality.system.errors import InvalidInputError, MissingFileError

EXECUTED_ACTION = "executed_action"
CONTACT = "contact"
SUCCESS = "success"
OBJECT_HEIGHT = "object_height"

Signals = Mapping[str, np.ndarray]
"""By name, float32 [N, dim] of one episode."""


def write_signals(root: Path, episodes: Sequence[Signals]) -> None:
    """Write the signals of a dataset's episodes, given in the dataset's order."""
    folder = _folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    for name in episodes[0]:
        np.save(folder / f"{name}.f32.npy", np.concatenate([signals[name] for signals in episodes]))


def read_signal(root: Path, name: str, num_frames: int) -> Float32[np.ndarray, "N dim"]:
    """Read one signal of a dataset.

    Args:
        root: the dataset's folder.
        name: such as `executed_action`.
        num_frames: N of the dataset.

    Raises:
        MissingFileError: the dataset has no such signal.
        InvalidInputError: the array is damaged or of another length.
    """
    path = _folder(root) / f"{name}.f32.npy"
    if not path.exists():
        found = sorted(p.name.removesuffix(".f32.npy") for p in path.parent.glob("*.f32.npy"))
        raise MissingFileError(
            f"{path} is not there (signals found: {', '.join(found) or 'none'}); record the "
            "dataset with this version's `collect_demos`, which writes it"
        )
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidInputError(f"{path} is damaged ({error}); record the dataset anew") from error
    if values.dtype != np.float32 or values.ndim != 2 or len(values) != num_frames:
        raise InvalidInputError(
            f"{path} has {values.dtype} {values.shape}, the dataset {num_frames} frames; record "
            "the dataset anew"
        )
    return values


def _folder(root: Path) -> Path:
    return root / "meta" / "signals"
