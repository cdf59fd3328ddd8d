"""What labels of one file have in common, kept beside it, so that a change is noticed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from world_modality.source.dataset_episodes import EPISODE_KEY
from world_modality.system.atomic import write_json
from world_modality.system.errors import InvalidInputError


def settings_path(path: Path) -> Path:
    """Return where the settings of a file of labels lie."""
    return path.with_suffix(".settings.json")


def write_settings(path: Path, settings: Mapping[str, Any], *, keep_earlier: bool = False) -> None:
    """Write the settings of the labels that are written to a file from now on.

    With `keep_earlier` they are added to those that are recorded, for a file whose settings change
    on the way.
    """
    earlier = _recorded(path) if keep_earlier else []
    if not earlier or earlier[-1] != settings:
        write_json(settings_path(path), {"settings": [*earlier, dict(settings)]})


def settings_changes(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Say how settings differ from those that the file's latest labels were made with.

    A file without recorded settings is not known to differ.

    Raises:
        InvalidInputError: the recorded settings are damaged.
    """
    recorded = _recorded(path)
    if not recorded:
        return []
    latest = recorded[-1]
    return [
        f"{name} was {latest.get(name)!r}, is {settings.get(name)!r}"
        for name in sorted({*latest, *settings})
        if latest.get(name) != settings.get(name)
    ]


def require_episode_key(path: Path, episode_key: str) -> None:
    """Check that the labels name episodes by the numbers of this column.

    A file without recorded settings is not known to differ.

    Raises:
        InvalidInputError: they were made with another `--episode_id_key`.
    """
    recorded = [settings for settings in _recorded(path) if "episode_key" in settings]
    others = {settings["episode_key"] or EPISODE_KEY for settings in recorded} - {episode_key}
    if others:
        raise InvalidInputError(
            f"{path} numbers episodes by the column {min(others)} ({settings_path(path)}), "
            f"expected {episode_key}; give the same --episode_id_key everywhere"
        )


def _recorded(path: Path) -> list[dict[str, Any]]:
    file = settings_path(path)
    if not file.exists():
        return []
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))["settings"]
        return [dict(settings) for settings in recorded]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{file} is damaged ({error}); it says what {path} was made with. Delete it to go on "
            "with the present settings"
        ) from error
