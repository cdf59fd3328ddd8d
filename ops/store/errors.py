"""Errors that a user can mend, and the command line that shows them as one message.

Exit codes: 0 done, 1 an error the user can mend, 2 a wrong command line, 130 interrupted.
"""

import io
import sys
from collections.abc import Callable
from typing import Any

import tyro

from ops import __version__


class OpsError(Exception):
    """Something outside the code has to change: an argument, a file, the machine."""


class RemoteError(OpsError):
    """The remote did not do what it was asked: down, slow, full, misconfigured. Try again later."""


class DamagedError(OpsError):
    """What lies on the remote or here is not what its checksum says, or is not well formed."""


class UsageError(OpsError):
    """The command line is wrong, in a way that its parser cannot see."""


def split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line at its first `--`: own arguments, and the command after it."""
    position = words.index("--") if "--" in words else len(words)
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
        sys.exit(run(tyro.cli(config_type, args=own, use_underscores=True), command))
    except OpsError as error:
        message, code = str(error), 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        # The machine refused a read or write: a full disk, a read-only folder.
        message, code = f"{error.strerror or error}: {error.filename or 'unnamed file'}", 1
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
