"""Command lines of stages, made from their flags."""

from collections.abc import Mapping
from typing import Any


def flag_arguments(flags: Mapping[str, Any]) -> list[str]:
    """Return the arguments that give a stage these flags; a flag that is None is left out."""
    arguments: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments
