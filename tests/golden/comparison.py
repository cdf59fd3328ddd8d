"""What of a stage's output is kept in the golden record, and how two records are compared.

On the machine that a record was made on, every number is compared exactly, and arrays by their
SHA-256. Another processor or another release of torch or numpy rounds otherwise: there numbers may
differ by `TOLERANCE`, and arrays are compared by the statistics that are kept beside the hash.
"""

import hashlib
import math
import platform
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4
"""Relative to the larger of two numbers; printed ones may also differ by one in the last digit."""
ZERO = 1e-6
"""Two numbers nearer than this are equal on another machine."""
MISSING = "<missing>"
# Times, rates and versions; hashes of files (a recording's, a checkpoint's) and what is made of
# them, which may change while the content does not. An array is compared by a hash of its own.
VOLATILE = frozenset(
    {"seconds", "checksum", "steps_per_second", "frames_per_s", "versions", "software"}
    | {"checkpoint_sha256", "cache_fingerprint", "dataset"}
)
VOLATILE_TEXT = (
    (re.compile(r"^Made .*$"), "Made <when and where>"),
    (re.compile(r"\b(?=[0-9]*[a-f])[0-9a-f]{10}\b"), "<hash>"),
    (re.compile(r"\b\d{10}\b"), "<hash>"),
    (re.compile(r"numpy [\d.]+\w*, python [^ ]+, torch [\w.+]+"), "<versions>"),
    (re.compile(r'"simulator": \{[^}]*\}'), '"simulator": <versions>'),
)
NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def machine() -> dict[str, str]:
    """Return what decides how numbers are rounded: the processor and the numerical libraries."""
    path = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cpu_model": f"family {fields.get('cpu family')}, model {fields.get('model')}",
        "vector_instructions": " ".join(name for name in ("avx2", "avx512f") if name in flags),
        **{name: version(name) for name in ("torch", "numpy", "mujoco", "lerobot")},
    }


def kept(content: Any) -> Any:
    """Return a stage's JSON without what differs between two runs of one commit."""
    if isinstance(content, dict):
        return {name: kept(value) for name, value in content.items() if name not in VOLATILE}
    if isinstance(content, list):
        return [kept(value) for value in content]
    return content


def kept_lines(path: Path) -> list[str]:
    """Return the lines of a text that a stage wrote, without times, versions and file hashes."""
    lines = path.read_text("utf-8").splitlines()
    for pattern, replacement in VOLATILE_TEXT:
        lines = [pattern.sub(replacement, line) for line in lines]
    return lines


def array_record(array: np.ndarray) -> dict[str, Any]:
    """Return an array's dtype, shape and SHA-256, and statistics for machines that round otherwise.

    The statistics are the mean, the standard deviation and the extremes of each column, or of all
    values where there is one column.
    """
    values = array.astype(np.float64).reshape(len(array), -1)
    if values.shape[1] > 16:
        values = values.reshape(-1, 1)
    columns = {
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "min": values.min(axis=0),
        "max": values.max(axis=0),
    }
    return {
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(),
        "statistics": {name: of.round(7).tolist() for name, of in columns.items()},
    }


def differences(was: Any, now: Any, *, exact: bool) -> list[str]:
    """Return one line for each difference: its key, what it was, and what it is."""
    before, after = dict(_leaves(was)), dict(_leaves(now))
    found = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key, MISSING), after.get(key, MISSING)
        if not exact and key.startswith("cache/") and key.endswith("/sha256"):
            continue
        if not (_same(old, new) if exact else _alike(old, new)):
            found.append(f"{key}\n    was {old!r}\n    is  {new!r}")
    return found


def _leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict | list) and content:
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for name, value in items:
            yield from _leaves(value, f"{key}/{name}" if key else str(name))
    else:
        yield key, content


def _same(old: Any, new: Any) -> bool:
    return type(old) is type(new) and (old == new or (old != old and new != new))


def _alike(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return _same(old, new) or math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=ZERO)
    if isinstance(old, str) and isinstance(new, str):
        return NUMBER.sub("#", old) == NUMBER.sub("#", new) and all(
            _printed_alike(*pair)
            for pair in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True)
        )
    return _same(old, new)


def _printed_alike(old: str, new: str) -> bool:
    old, new = old.replace("−", "-"), new.replace("−", "-")
    mantissa, _, exponent = old.lower().partition("e")
    last_digit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    difference = abs(float(old) - float(new))
    # A whole number is a count or a seed, unless it is printed otherwise next time.
    allowed = 1.01 * last_digit if "." in old or exponent else 0.0
    return difference <= max(allowed, TOLERANCE * abs(float(old)) if "." in old else 0.0)
