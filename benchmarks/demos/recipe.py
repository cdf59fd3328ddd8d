"""What decides a recording's data: equal recipes give equal datasets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from world_modality.system.errors import InvalidInputError

Recipe = Mapping[str, Mapping[str, Any]]
"""JSON: `config` (flag to value), `rendering` and `software` (setting to value)."""

CONFIG_SECTION = "config"
RECIPE_SECTIONS = (CONFIG_SECTION, "rendering", "software")


def read_sections(path: Path) -> dict[str, Any]:
    """Read a file that holds a recipe, among other things.

    Raises:
        InvalidInputError: it does not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _no_recipe(path, f"is no JSON ({str(error)[:100]})") from error
    for section in RECIPE_SECTIONS:
        if not isinstance(content, dict) or not isinstance(content.get(section), dict):
            raise _no_recipe(path, f"has no object {section!r}")
    return dict(content)


def _no_recipe(path: Path, fault: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path} {fault}, so that it does not say how the recording was made: it is damaged, or "
        "another program's; give another --dataset_root, or --overwrite to start anew"
    )


def refuse_other_recipe(recorded: Recipe, wanted: Recipe, folder: Path) -> None:
    """Check that a recording was made by the recipe that is wanted now.

    Raises:
        InvalidInputError: it was not; the message names every flag and setting that differs.
    """
    before, now = _settings(recorded), _settings(wanted)
    differences = [
        f"{name} is {json.dumps(now.get(name))} now and was {json.dumps(before.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise InvalidInputError(
            f"{folder} was recorded with other settings: {'; '.join(differences)}. "
            "Give those again, another --dataset_root, or --overwrite to delete it and start anew"
        )


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {
        f"--{name}" if section == CONFIG_SECTION else f"{section}.{name}": value
        for section, values in recipe.items()
        for name, value in values.items()
    }
