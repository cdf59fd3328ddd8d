"""Which recording a checkpoint was trained on, where this project made it."""

from pathlib import Path
from typing import Any

from world_modality.system.errors import InvalidInputError


def recording_of(checkpoint_path: Path, suite: str) -> dict[str, Any] | None:
    """Return what a checkpoint says of its dataset's recording; None where that is no recording.

    Args:
        checkpoint_path: the checkpoint's file.
        suite: name of the suite that is to be rolled out.

    Raises:
        UserError: the checkpoint is missing or damaged.
        InvalidInputError: it was trained on a recording of another suite.
    """
    import torch

    from world_modality.policy.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(checkpoint_path, torch.device("cpu"))
    recording: dict[str, Any] | None = checkpoint.manifest["dataset"].get("recording")
    if recording is None:
        return None
    recorded = recording.get("suite", {}).get("name")
    if recorded != suite:
        raise InvalidInputError(
            f"{checkpoint_path} was trained on a recording of {recorded or 'an older version'}, "
            f"not of {suite}; roll it out in the suite that it was trained on, or train again on "
            "a recording of this one"
        )
    return recording
