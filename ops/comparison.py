"""Whether two folders hold the same results, file by file."""

import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ops.store.errors import OpsError

Form = Literal["exact", "jsonl", "npy", "parquet", "pt"]
_SHOWN = 3


def compare_folders(
    reference: Path,
    other: Path,
    patterns: Mapping[Form, Sequence[str]],
    ignored: Collection[str] = (),
) -> list[str]:
    """Return what differs, a line per file; none if the folders agree.

    Args:
        reference: what is expected.
        other: what is compared with it.
        patterns: by form, relative to the folders. `exact` compares byte by byte; `jsonl` line by
            line as JSON; `npy` by dtype, shape and bytes, never unpickled; `parquet` by the names,
            types and values of columns (what a writer notes beside them, such as the random
            fingerprint of `datasets`, does not count); `pt` torch files by their tensors' bytes and
            their other values, loaded without executing anything.
        ignored: names of fields that may differ in `jsonl` and `pt`, at any depth.

    Raises:
        OpsError: a pattern matches nothing in the reference, so it would compare nothing.
    """
    readers: dict[Form, Callable[[Path], Any]] = {
        "exact": Path.read_bytes,
        "jsonl": lambda path: _without(_json_lines(path), ignored),
        "npy": _array,
        "parquet": _table,
        "pt": lambda path: _without(_torch_content(path), ignored),
    }
    differences = []
    for form, wanted in patterns.items():
        for pattern in wanted:
            differences += _compare_pattern(reference, other, pattern, readers[form])
    return differences


def _compare_pattern(
    reference: Path, other: Path, pattern: str, read: Callable[[Path], Any]
) -> list[str]:
    expected = {path.relative_to(reference) for path in reference.glob(pattern) if path.is_file()}
    found = {path.relative_to(other) for path in other.glob(pattern) if path.is_file()}
    if not expected:
        raise OpsError(f"{pattern!r} matches no file in {reference}")
    differences = [f"{path} is missing" for path in sorted(expected - found)]
    differences += [f"{path} should not be there" for path in sorted(found - expected)]
    for path in sorted(expected & found):
        try:
            difference = _difference(read(reference / path), read(other / path), "")
        except (ValueError, OSError, RuntimeError, EOFError) as error:
            difference = f" cannot be read: {error}"
        if difference is not None:
            differences.append(f"{path}{difference}")
    return differences


def _difference(one: Any, two: Any, where: str) -> str | None:
    """Return where two values first differ, or None."""
    if type(one) is not type(two):
        return f"{where} is a {type(two).__name__}, not a {type(one).__name__}"
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return f"{where} has other fields: {sorted(map(str, one.keys() ^ two.keys()))[:_SHOWN]}"
        pairs = [(one[key], two[key], f"{where}[{key!r}]") for key in one]
    elif isinstance(one, list | tuple):
        if len(one) != len(two):
            return f"{where} has {len(two)} items, not {len(one)}"
        pairs = [(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(one, two, strict=True))]
    elif isinstance(one, np.ndarray):
        same = (one.dtype, one.shape) == (two.dtype, two.shape) and one.tobytes() == two.tobytes()
        return None if same else f"{where} differs as an array"
    else:
        same = one == two or (one != one and two != two)  # NaN is NaN here
        return None if same else f"{where} differs"
    found = (_difference(*pair) for pair in pairs)
    return next((difference for difference in found if difference is not None), None)


def _without(value: Any, ignored: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, ignored) for key, item in value.items() if key not in ignored}
    if isinstance(value, list | tuple):
        return [_without(item, ignored) for item in value]
    return value


def _json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _array(path: Path) -> Any:
    return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)


def _table(path: Path) -> Any:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return [{field.name: str(field.type) for field in table.schema}, table.to_pydict()]


def _torch_content(path: Path) -> Any:
    import torch

    def to_numpy(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            # bfloat16 is nothing that numpy knows; bytes compare as well.
            return [str(value.dtype), list(value.shape), flat.view(torch.uint8).numpy()]
        if isinstance(value, dict):
            return {key: to_numpy(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [to_numpy(item) for item in value]
        return value

    return to_numpy(torch.load(path, map_location="cpu", weights_only=True))
