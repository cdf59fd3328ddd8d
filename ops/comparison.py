"""Whether two folders hold the same results, file by file."""

import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ops.store.errors import OpsError

Form = Literal["exact", "jsonl", "npy", "parquet", "pt"]


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
    differences = []
    for form, wanted in patterns.items():
        for pattern in wanted:
            may_differ = ignored if form in ("jsonl", "pt") else ()
            differences += _compare_pattern(reference, other, pattern, form, may_differ)
    return differences


def _compare_pattern(
    reference: Path, other: Path, pattern: str, form: Form, ignored: Collection[str]
) -> list[str]:
    expected = {path.relative_to(reference) for path in reference.glob(pattern) if path.is_file()}
    found = {path.relative_to(other) for path in other.glob(pattern) if path.is_file()}
    if not expected:
        raise OpsError(f"{pattern!r} matches no file in {reference}")
    differences = [f"{path} is missing" for path in sorted(expected - found)]
    differences += [f"{path} should not be there" for path in sorted(found - expected)]
    for path in sorted(expected & found):
        try:
            read = _READERS[form]
            one, two = (dict(_parts(read(place / path), ignored)) for place in (reference, other))
        except (ValueError, OSError, RuntimeError, EOFError) as error:
            differences.append(f"{path} cannot be read: {error}")
            continue
        where = next((where for where in {**one, **two} if one.get(where) != two.get(where)), None)
        if where is not None:
            differences.append(f"{path}{where} differs")
    return differences


def _parts(value: Any, ignored: Collection[str], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all that a value is made of, by where it is, in a form that `==` compares exactly."""
    if isinstance(value, dict | list | tuple):
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        kept = [(key, item) for key, item in items if key not in ignored]
        yield where, (type(value).__name__, len(kept))
        for key, item in kept:
            yield from _parts(item, ignored, f"{where}[{key!r}]")
    elif isinstance(value, np.ndarray):
        yield where, (value.dtype, value.shape, value.tobytes())
    else:  # NaN is NaN here
        yield where, (type(value).__name__, repr(value) if isinstance(value, float) else value)


def _json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _array(path: Path) -> Any:
    return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)


def _table(path: Path) -> Any:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return {**{f"type of {f.name}": str(f.type) for f in table.schema}, **table.to_pydict()}


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


_READERS: dict[Form, Callable[[Path], Any]] = {
    "exact": Path.read_bytes,
    "jsonl": _json_lines,
    "npy": _array,
    "parquet": _table,
    "pt": _torch_content,
}
