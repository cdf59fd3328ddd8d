"""Uploading an exported folder."""

from pathlib import Path

from world_modality.export.policy_folder import POSTPROCESSOR, PREPROCESSOR
from world_modality.export.policy_record import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from world_modality.system.errors import InvalidInputError
from world_modality.system.hub import upload

# The resolved flags name folders of this machine, and stay here.
UPLOADED = [
    *(CONFIG_FILE, WEIGHTS_FILE, CARD_FILE),
    *(f"{name}.json" for name in (PREPROCESSOR, POSTPROCESSOR)),
]


def push_folder(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload an exported policy as one commit; return its address.

    Args:
        folder: where the policy was exported to.
        repo_id: `user/name`; made where it is not there.
        private: make the repository a private one.

    Raises:
        InvalidInputError: the hub does not answer, or does not take it.
    """
    return upload(
        repo_id,
        "model",
        [(name, folder / name) for name in UPLOADED],
        "Upload the policy, its processors and its card",
        lambda said: InvalidInputError(
            f"--push_to_hub {repo_id}: {said}; {folder} is whole, and the same command uploads it "
            "when the hub answers and hf auth login has been done"
        ),
        private=private,
    ).address
