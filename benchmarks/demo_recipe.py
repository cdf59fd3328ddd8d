"""What decides a recording's data: equal recipes give equal datasets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from world_modality.errors import InvalidInputError

Recipe = Mapping[str, Mapping[str, Any]]
"""JSON: `config` (flag to value), `rendering` and `software` (setting to value)."""

CONFIG_SECTION = "config"
RECIPE_SECTIONS = (CONFIG_SECTION, "rendering", "software")


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
