"""What every stage's command line shares: parsing, errors as one message, the resolved config.

Exit codes: 0 done, 1 an error the user can mend, 2 a wrong command line, 130 interrupted by Ctrl-C
(SIGINT) or SIGTERM: what is finished stays, what was being written is not there.
"""

import dataclasses
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

import world_modality
from world_modality import __version__
from world_modality.system.atomic import write_json
from world_modality.system.errors import UserError
from world_modality.system.stop_signals import termination_as_interrupt

ConfigT = TypeVar("ConfigT")

TOP = Path(world_modality.__file__).parents[1]
"""Where the packages lie, with the training scripts beside them: the checkout, or site-packages."""


def run_cli(config_type: type[ConfigT], run: Callable[[ConfigT], object]) -> None:
    """Parse `sys.argv` into `config_type`, call `run` with it, and exit; or print the version.

    Args:
        config_type: the stage's frozen dataclass; its fields are the flags, with underscores.
        run: does the work; what it returns is ignored here. Interrupted, it gets a
            KeyboardInterrupt in the main thread.
    """
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks is printed as an escape, instead of ending in an error.
        if isinstance(stream, io.TextIOWrapper):  # a test may have put something else there
            stream.reconfigure(errors="backslashreplace")
    if sys.argv[1:] == ["--version"]:
        print(f"world-modality-vla {__version__}")
        sys.exit()
    try:
        with termination_as_interrupt():
            run(tyro.cli(config_type, use_underscores=True))
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print(_how_to_go_on(config_type), file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        # The machine refused a read or write: a full disk, a read-only folder, a missing
        # permission.
        _fail(f"{error.strerror or error}: {error.filename or 'unnamed file'}")


def _how_to_go_on(config_type: type[Any]) -> str:
    has_resume = any(field.name == "resume" for field in dataclasses.fields(config_type))
    flag = " with --resume" if has_resume else ""
    return f"interrupted; give the same command again{flag} to go on with what is finished"


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def config_dict(config: Any) -> dict[str, Any]:
    """Turn a config dataclass into what JSON holds (paths as strings, tuples as lists)."""
    resolved: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return resolved


def write_config(config: Any, path: Path) -> None:
    """Write the resolved config atomically as JSON."""
    write_json(path, config_dict(config))


def flag_arguments(flags: Mapping[str, Any]) -> list[str]:
    """Return the arguments that give a stage these flags; None and no values are left out."""
    arguments: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, list | tuple):
            arguments += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


def located(arguments: Sequence[str]) -> list[str]:
    """Return the interpreter's arguments with a training script's name as its path."""
    program, *flags = arguments
    return [str(TOP / program) if program.endswith(".py") else program, *flags]
