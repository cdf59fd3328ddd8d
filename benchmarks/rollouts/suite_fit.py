"""Whether a suite shows a checkpoint's policy what it was trained on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float32

from benchmarks.rendering import Rendering
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.suite import Observation, Suite
from world_modality.cache.contract import image_keys_of
from world_modality.precompute.dataset_columns import joined_columns
from world_modality.system.errors import InvalidInputError, MissingKeyError, missing_key

if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint

RenderingT = TypeVar("RenderingT", bound=Rendering)
# Other drivers draw nearly the same image; all else in a rendering is a choice.
_GL_BACKEND = "gl_backend"


@dataclass(frozen=True)
class PolicyInputs:
    """Which parts of an observation a policy sees.

    Attributes:
        image_keys: the cameras, one for each view of the policy, in their order.
        trained_keys: the cameras that it was trained on.
        state_key: the robot's state; several joined by + are concatenated.
        state_dim: S that the policy was built for.
    """

    image_keys: tuple[str, ...]
    trained_keys: tuple[str, ...]
    state_key: str
    state_dim: int

    @classmethod
    def of(cls, checkpoint: "Checkpoint", suite: Suite, config: RolloutConfig) -> "PolicyInputs":
        """Choose them: those named, or those that the policy was trained on.

        Raises:
            MissingKeyError: the suite has no such camera or state; lists those there are.
            InvalidInputError: other cameras are named than one for each view, or one twice.
        """
        dataset = checkpoint.manifest["dataset"]
        trained_keys = tuple(image_keys_of(dataset))
        image_keys = config.camera_key or trained_keys
        if len(image_keys) != len(trained_keys) or len(set(image_keys)) != len(image_keys):
            raise InvalidInputError(
                f"--camera_key {' '.join(image_keys)}: name one camera for each view that the "
                f"policy was trained on ({' '.join(trained_keys)}), in that order and each once"
            )
        _require_cameras(image_keys, suite)
        state_key = config.state_key or str(dataset["state_key"])
        for key in joined_columns(state_key):
            _require_key("robot state", key, suite.state_keys, "--state_key", suite)
        state_dim = checkpoint.policy_config.frame.state_dim
        return cls(image_keys, trained_keys, state_key, state_dim)

    def state(self, observation: Observation) -> Float32[np.ndarray, " S"]:
        """Return a copy of an observation's state.

        Raises:
            InvalidInputError: its dimension is not the policy's.
        """
        state = joined_vectors(observation, self.state_key)
        if state.shape != (self.state_dim,):
            raise InvalidInputError(
                f"the policy was trained on {self.state_dim} state dimensions, but the simulator's "
                f"{self.state_key} has shape {list(state.shape)}; name the state that it was "
                "trained on with --state_key"
            )
        return state


def joined_vectors(vectors: Mapping[str, np.ndarray], key: str) -> Float32[np.ndarray, "*frames S"]:
    """Return the vectors that a key names, concatenated as precompute does it."""
    parts = [vectors[column] for column in joined_columns(key)]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def require_actions(checkpoint: "Checkpoint", suite: Suite) -> None:
    """Check the action's dimension.

    Raises:
        InvalidInputError: the policy's actions are not the suite's.
    """
    dim = checkpoint.policy_config.frame.action_dim
    if dim != suite.action_dim:
        raise InvalidInputError(
            f"the policy predicts actions of {dim} dimensions, but {suite.name} takes "
            f"{suite.action_dim}; roll it out in the suite that it was trained on "
            f"({checkpoint.manifest['dataset'].get('name')})"
        )


def require_rendering(checkpoint: "Checkpoint", suite: Suite) -> list[str]:
    """Check that images are made as in the recording; return notes on what may differ.

    Datasets that this project did not record say nothing about their rendering, and pass.

    Raises:
        InvalidInputError: names the settings that differ.
    """
    recording = checkpoint.manifest["dataset"].get("recording") or {}
    recorded: dict[str, Any] | None = recording.get("rendering")
    if recorded is None:
        return []
    differing = differing_settings(recorded, suite.record()["rendering"])
    notes = [change for name, change in differing.items() if name == _GL_BACKEND]
    refused = [change for name, change in differing.items() if name != _GL_BACKEND]
    if refused:
        raise InvalidInputError(
            f"the policy was trained on images that {suite.name} would not make: "
            f"{'; '.join(refused)}. Roll it out with the rendering of its recording, and compare "
            "only checkpoints that share one"
        )
    return notes


def differing_settings(recorded: dict[str, Any], present: dict[str, Any]) -> dict[str, str]:
    """Say of each rendering setting that differs what it was and what it is."""
    return {
        name: f"{name} was {_shown(recorded, name)} in the recording and is "
        f"{_shown(present, name)} here"
        for name in sorted({*recorded, *present})
        if recorded.get(name) != present.get(name)
    }


def _shown(settings: dict[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "not known"


def _require_cameras(image_keys: Sequence[str], suite: Suite) -> None:
    missing = [key for key in image_keys if key not in suite.image_keys]
    if missing and len(image_keys) > 1:
        raise MissingKeyError(
            f"the policy sees {' and '.join(image_keys)}, but suite {suite.name} has no "
            f"{' and no '.join(missing)}; there are: {', '.join(suite.image_keys)}. Roll it out "
            "with the cameras of its recording, or name others with --camera_key"
        )
    for key in missing:
        _require_key("camera", key, suite.image_keys, "--camera_key", suite)


def _require_key(kind: str, key: str, available: Sequence[str], flag: str, suite: Suite) -> None:
    if key not in available:
        raise missing_key(kind, key, available, f"suite {suite.name} ({flag} chooses one)")


def dataset_of(checkpoint_path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of the dataset that it was trained on.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    import torch

    from world_modality.policy.checkpoint import load_checkpoint

    dataset: dict[str, Any] = load_checkpoint(checkpoint_path, torch.device("cpu")).manifest[
        "dataset"
    ]
    return dataset


def recorded_rendering(
    checkpoint_path: Path,
    dataset: Mapping[str, Any],
    rendering_type: type[RenderingT],
    simulator: str,
) -> RenderingT:
    """Return the rendering that a checkpoint's dataset was recorded with.

    Datasets that this project did not record are taken for LeRobot's public ones; a note says so.

    Args:
        checkpoint_path: the checkpoint's file.
        dataset: what `dataset_of` says of it.
        rendering_type: the suite's.
        simulator: what the names of its suites begin with, such as `libero`.

    Raises:
        InvalidInputError: it was trained on another simulator's recording.
    """
    recording = dataset.get("recording")
    if recording is None:
        print(
            f"note: {checkpoint_path} records no rendering; that of LeRobot's public data is used"
        )
        return rendering_type.lerobot()
    recorded = recording.get("suite", {}).get("name", "an older version")
    if not recorded.startswith(simulator):
        raise InvalidInputError(
            f"{checkpoint_path} was trained on a recording of {recorded}, not of {simulator}; roll "
            "it out in the suite that it was trained on, or train again on a recording of this one"
        )
    return rendering_type.from_record(recording["rendering"])
