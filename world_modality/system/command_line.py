"""Command lines of stages, made from their flags."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import world_modality

TOP = Path(world_modality.__file__).parents[1]
"""Where the packages lie, with the training scripts beside them: the checkout, or site-packages."""


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


def located(arguments: Sequence[str]) -> list[str]:
    """Return the interpreter's arguments with a training script's name as its path."""
    program, *flags = arguments
    return [str(TOP / program) if program.endswith(".py") else program, *flags]
