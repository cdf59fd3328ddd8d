"""What the commands of `ops` share: parsing, errors as one message, exit codes.

Exit codes: 0 done, 1 an error the user can mend, 2 a wrong command line, 130 interrupted.
"""

import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from ops import __version__
from ops.errors import OpsError, UsageError


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line at its first `--`: own arguments, and the command after it."""
    words = list(arguments)
    if "--" not in words:
        return words, []
    position = words.index("--")
    return words[:position], words[position + 1 :]


def run_cli(config_type: Any, run: Callable[[Any, list[str]], int]) -> None:
    """Parse `sys.argv` into a config and the command after `--`, run, and exit.

    Args:
        config_type: a frozen dataclass, or a union of them as subcommands.
        run: does the work; what it returns is the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks, in a file's name, is printed as an escape.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.argv[1:] == ["--version"]:
        print(f"world-modality-vla {__version__}")
        sys.exit()
    own, command = split_command(sys.argv[1:])
    try:
        code = run(tyro.cli(config_type, args=own, use_underscores=True), command)
    except UsageError as error:
        _fail(str(error), 2)
    except OpsError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        # The machine refused a read or write: a full disk, a read-only folder.
        _fail(f"{error.strerror or error}: {error.filename or 'unnamed file'}")
    sys.exit(code)


def _fail(message: str, code: int = 1) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
