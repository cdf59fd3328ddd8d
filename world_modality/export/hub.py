"""Uploading an exported folder."""

import importlib.metadata
from pathlib import Path

from world_modality.export.policy_folder import POSTPROCESSOR, PREPROCESSOR
from world_modality.export.policy_record import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from world_modality.system.errors import InvalidInputError
from world_modality.system.network import (
    hub_client_failures,
    hub_endpoint,
    require_proxy_support,
    through_proxy,
    without_credentials,
)

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
    import huggingface_hub

    is_first = importlib.metadata.version("huggingface_hub").startswith("0.")
    require_proxy_support(hub_endpoint(), "requests" if is_first else "httpx")
    hub = huggingface_hub.HfApi()
    # ValueError: an answer that is no JSON, such as a proxy's page.
    failures: tuple[type[Exception], ...] = (*hub_client_failures(), ValueError)
    try:
        repository = hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(
            folder_path=folder,
            repo_id=repository.repo_id,
            allow_patterns=UPLOADED,
            commit_message="Upload the policy, its processors and its card",
        )
    except failures as error:
        reason = without_credentials(" ".join(str(error).split()))[:200]
        raise InvalidInputError(
            f"--push_to_hub {repo_id}: the hub{through_proxy(hub_endpoint())} did not take it "
            f"({type(error).__name__}: {reason}); {folder} is whole, and the same command uploads "
            "it when the hub answers and hf auth login has been done"
        ) from error
    return str(repository)
