"""Where lerobot keeps local datasets; known without lerobot, which takes seconds to import."""

import os
from pathlib import Path

from world_modality.system.errors import InvalidInputError


def lerobot_home() -> Path:
    """Return HF_LEROBOT_HOME, or where lerobot and the hub's client put it by default."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hub_home = os.environ.get("HF_HOME") or f"{user_cache}/huggingface"
    return Path(os.environ.get("HF_LEROBOT_HOME") or f"{hub_home}/lerobot").expanduser()


def local_dataset_folder(name: str) -> Path:
    """Return where a dataset of that name lies locally, `HF_LEROBOT_HOME/<name>`.

    Raises:
        InvalidInputError: the name is empty, absolute, or would leave that folder.
    """
    path = Path(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise InvalidInputError(
            f"--dataset_name {name!r} does not name a folder inside {lerobot_home()}; expected a "
            "name like HuggingFaceVLA/libero, or the folder itself in --dataset_root"
        )
    return lerobot_home() / path
