"""Where lerobot keeps local datasets; known without lerobot, which takes seconds to import."""

import os
from pathlib import Path


def lerobot_home() -> Path:
    """Return HF_LEROBOT_HOME, or where lerobot and the hub's client put it by default."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hub_home = os.environ.get("HF_HOME") or f"{user_cache}/huggingface"
    return Path(os.environ.get("HF_LEROBOT_HOME") or f"{hub_home}/lerobot").expanduser()
