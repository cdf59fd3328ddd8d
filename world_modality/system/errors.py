"""Errors that a user can mend.

Each says what was expected, what was found, in which file, and the command that mends it.
`cli.run_cli` prints them as one message without a traceback; any other exception is a defect and
keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something outside the code has to change: an argument, a file, the machine."""


class InvalidInputError(UserError, ValueError):
    """A value or a file's content is not what the stage needs."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that an earlier stage writes is not there."""


class MissingKeyError(UserError, KeyError):
    """A column, array or task of that name does not exist."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the message's repr


def require_at_least(flag: str, value: float | None, minimum: int) -> None:
    """Refuse a flag's value that is too small; None stands for a flag that is left out.

    Raises:
        InvalidInputError: `value` is below `minimum`.
    """
    if value is not None and value < minimum:
        raise InvalidInputError(f"--{flag} must be at least {minimum}, not {value}")


def missing_key(kind: str, key: str, available: Iterable[str], where: str) -> MissingKeyError:
    """Build the error for a wrong name: it lists the names there are, nearest first."""
    names = list(available)
    nearest = difflib.get_close_matches(key, names, n=len(names) or 1, cutoff=0.5)
    ordered = nearest + [name for name in names if name not in nearest]
    listing = ", ".join(ordered) if ordered else "none"
    return MissingKeyError(f"no {kind} {key!r} in {where}; there are: {listing}")
