"""How what two manifests say differs, entry by entry."""

import json
from collections.abc import Collection, Mapping
from typing import Any

SHOWN_CHARACTERS = 60


def differences(
    found: Mapping[str, Any], asked: Mapping[str, Any], left_out: Collection[str] = ()
) -> list[str]:
    """Say of each entry that differs, by its dotted name, what it is there and what here.

    Args:
        found: nested objects as JSON has them.
        asked: what they are compared with.
        left_out: dotted names that are not compared.
    """
    there, here = _entries(found), _entries(asked)
    return [
        f"{name} is {_shown(there, name)} there, {_shown(here, name)} here"
        for name in {**there, **here}
        if name not in left_out and there.get(name) != here.get(name)
    ]


def _entries(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all values of nested objects by their dotted name."""
    entries: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        entries |= _entries(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return entries


def _shown(entries: Mapping[str, Any], name: str) -> str:
    text = json.dumps(entries[name]) if name in entries else "absent"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
