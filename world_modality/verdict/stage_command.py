"""The command line that a stage's stored `config.json` stands for."""

import shlex
from collections.abc import Collection, Mapping
from typing import Any


def stage_command(program: str, config: Mapping[str, Any], left_out: Collection[str] = ()) -> str:
    """Return a command that gives a stage all flags of a resolved configuration.

    Args:
        program: script or module, as it follows `python`.
        config: flags by name; None and an empty list stand for a flag that was not given.
        left_out: flags that say nothing of the result, such as `resume`.
    """
    flags = [_flag(name, value) for name, value in config.items() if name not in left_out]
    return " ".join(["python", program, *(flag for flag in flags if flag)])


def _flag(name: str, value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    values = value if isinstance(value, list) else [value]
    return " ".join([f"--{name}", *(shlex.quote(str(one)) for one in values)])
