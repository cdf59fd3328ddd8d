"""Errors that a user can mend, and the command line that shows them as one message.

Exit codes: 0 done, 1 an error the user can mend, 2 a wrong command line, 130 interrupted,
141 what read the output has gone.
"""

import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def closed_pipe_ends_quietly() -> Iterator[None]:
    """End with 141, as a shell names SIGPIPE, when what reads the output has gone (`| head`).

    Any other broken pipe is raised on.
    """
    try:
        try:
            yield
        except SystemExit:  # of --help and --version
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        for output in (1, 2):
            poll.register(output, 0)
        closed = [
            output for output, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)
        ]
        if not closed:
            raise
        for output in closed:  # or the interpreter would fail at its last flush, too
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        sys.exit(128 + signal.SIGPIPE)


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
    own, command = split_command(sys.argv[1:])
    try:
        with closed_pipe_ends_quietly():
            if own == ["--version"]:
                print(f"world-modality-vla {__version__}")
                sys.exit()
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
