"""One random change to a file, drawn from a seed, and what a command line makes of it."""

import io
import json
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from world_modality.system.cli import run_cli

# What may stand where a JSON value or a cell of a table stood.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 10**30, -0.5, 1e308, float("nan"), float("inf")),
    *("", "None", "x" * 300, "ünï \ud83d", "../../etc/passwd", [], [0], {}, {"a": 1}, [[1, [2]]]),
)


@dataclass(frozen=True)
class Outcome:
    """What the user of a stage saw.

    Attributes:
        kind: `done`, `refused` (a line and exit code 1), or `traceback`.
        said: everything that was printed, and the traceback where there was one.
    """

    kind: str
    said: str


def command_line(run: Callable[[Any], Any], config: Any) -> Outcome:
    """Run a stage as `python -m` would, apart from the parsing of its flags."""
    # As a terminal has it: what cannot be encoded raises.
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    kind = "done"
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            with patch("world_modality.system.cli.tyro.cli", return_value=config):
                run_cli(type(config), run)
        except SystemExit as left:
            kind = "refused" if left.code == 1 else "traceback"
        except BaseException:  # noqa: BLE001 - any exception here is the traceback looked for
            kind = "traceback"
            traceback.print_exc(file=io.StringIO())
            printed.buffer.write(traceback.format_exc().encode("utf-8", "replace"))
    said = printed.buffer.getvalue().decode("utf-8", "replace")
    if kind == "refused" and "error: " not in said:
        kind = "traceback"
    return Outcome(kind, said)


@dataclass(frozen=True)
class Stage:
    """A stage's command, and what reads back its result."""

    run: Callable[[Any], Any]
    config: Any
    read: Callable[[], Any]

    def result(self) -> Any:
        """Return what the stage makes of undamaged files."""
        outcome = command_line(self.run, self.config)
        assert outcome.kind == "done", outcome.said
        return self.read()


@dataclass
class Cases:
    """What stages made of damaged files: how often each outcome came, and the faults."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, name: str, kind: str, case: str, said: str = "") -> None:
        """Count an outcome of a stage; a traceback or a silent difference is a fault."""
        self.counts[name, kind] += 1
        if kind in ("traceback", "silently different"):
            self.faults.append(f"{case}: {name} {kind}\n{said[-2000:]}")

    def require_no_faults(self) -> None:
        """Print how often each outcome came, and fail where there are faults."""
        print(dict(sorted(self.counts.items())))
        assert not self.faults, f"{len(self.faults)} faults:\n" + "\n".join(self.faults[:20])


def run_cases(
    folder: Path,
    num_cases: int,
    prepare: Callable[[Path, np.random.Generator], tuple[str, dict[str, Stage]]],
    judge: Callable[[Path, str, Outcome, Any], str],
) -> Counter[tuple[str, str]]:
    """Run stages on damaged files, one case a seed; return how often each came to each end.

    Args:
        folder: gets a folder for each case, removed afterwards.
        num_cases: how many.
        prepare: damages files in an empty folder; returns the change in words, and the stages.
        judge: names what a stage that went through has done, from the case's folder and the
            stage's name, outcome and result.
    """
    cases = Cases()
    for seed in range(num_cases):
        home = folder / str(seed)
        home.mkdir()
        change, stages = prepare(home, np.random.default_rng(seed))
        for name, stage in stages.items():
            outcome = command_line(stage.run, stage.config)
            kind = outcome.kind
            if kind == "done":
                kind = judge(home, name, outcome, stage.read())
            cases.add(name, kind, f"seed {seed}, {change}", outcome.said)
        shutil.rmtree(home)
    cases.require_no_faults()
    return cases.counts


def drawn(
    changes: Mapping[Callable[..., str], float], rng: np.random.Generator
) -> Callable[..., str]:
    """Draw one of several changes, each with its share of the cases."""
    kinds = list(changes)
    return kinds[int(rng.choice(len(kinds), p=list(changes.values())))]


def change_byte(path: Path, rng: np.random.Generator) -> str:
    """Change one byte of a file: another value, one bit, one more, one less, or cut off there."""
    content = bytearray(path.read_bytes())
    where = int(rng.integers(len(content)))
    kind = str(rng.choice(["value", "value", "bit", "insert", "delete", "cut"]))
    if kind == "value":
        content[where] = int(content[where] + rng.integers(1, 256)) % 256
    elif kind == "bit":
        content[where] ^= 1 << int(rng.integers(8))
    elif kind == "insert":
        content.insert(where, int(rng.integers(256)))
    elif kind == "delete":
        del content[where]
    else:
        del content[where:]
    path.write_bytes(bytes(content))
    return f"byte {where} of {path.name}: {kind}"


def damage_file(path: Path, rng: np.random.Generator) -> str:
    """Take a whole file away, or put something else under its name."""
    kind = str(rng.choice(["missing", "empty", "pointer", "folder", "zeros"]))
    size = path.stat().st_size
    path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "pointer":
        path.write_text(
            f"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize {size}\n",
            encoding="utf-8",
        )
    elif kind == "folder":
        path.mkdir()
    elif kind == "zeros":
        path.write_bytes(bytes(size))
    return f"{path.name}: {kind}"


def change_json(content: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """Change one key or value anywhere in a JSON value; the content itself is kept.

    A place is drawn level by level, so that a long list does not hide the keys beside it.
    """
    content = json.loads(json.dumps(content))
    place, steps = content, []
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[int(rng.integers(len(keys)))]
        steps.append(str(key))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.25:
            break
        place = inner
    kind = str(rng.choice(["remove", "rename", "value", "value", "double", "near"]))
    where = ".".join(steps)
    if kind == "remove" or (kind == "rename" and isinstance(place, list)):
        del place[key]
    elif kind == "rename":
        place[f"{key}x"] = place.pop(key)
    elif kind == "double" and isinstance(place, list):
        place.insert(key, place[key])
    elif kind == "near" and type(place[key]) in (int, float):
        place[key] += 1
    elif kind == "near" and isinstance(place[key], str):
        place[key] += " "
    else:
        place[key] = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
        kind = f"value {place[key]!r:.40}"
    return content, f"{where}: {kind}"


def change_json_file(path: Path, rng: np.random.Generator) -> str:
    """Change one key or value of a JSON file."""
    content, said = change_json(json.loads(path.read_text("utf-8")), rng)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return f"{path.name} {said}"


def change_rows(rows: Sequence[Any], rng: np.random.Generator) -> tuple[list[Any], str]:
    """Remove, double or swap one of some rows."""
    rows = list(rows)
    at, other = rng.integers(len(rows), size=2).tolist()
    kind = str(rng.choice(["remove", "double", "swap"]))
    if kind == "remove":
        del rows[at]
    elif kind == "double":
        rows.insert(other, rows[at])
    else:
        rows[at], rows[other] = rows[other], rows[at]
    return rows, f"row {at}: {kind} {other}"


def change_table(path: Path, rng: np.random.Generator) -> str:
    """Change one row, column or cell of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    kind = str(rng.choice(["rows", "rows", "cell", "cell", "cell", "drop", "rename", "type"]))
    if kind == "rows":
        order, said = change_rows(range(table.num_rows), rng)
        pq.write_table(table.take(order), path)
        return f"{path.name} {said}"
    number = int(rng.integers(table.num_columns))
    name = table.column_names[number]
    if kind == "drop":
        table = table.drop_columns([name])
    elif kind == "rename":
        table = table.rename_columns([f"{n}x" if n == name else n for n in table.column_names])
    else:
        cells = table.column(name).to_pylist()
        row = int(rng.integers(len(cells)))
        dtype = table.schema.field(name).type
        if kind == "cell":
            cells[row], said = _changed_cell(cells[row], rng)
            kind = f"cell {row} {said}"
        else:
            dtype = (pa.string(), pa.large_list(pa.float64()))[int(rng.integers(2))]
            cells = [str(c) if dtype == pa.string() else [0.0] for c in cells]
        field = table.schema.field(name).with_type(dtype)
        try:
            column = pa.array(cells, dtype)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            # The column's type holds no such value: it becomes a missing one.
            cells[row] = None
            column = pa.array(cells, dtype)
        table = table.set_column(number, field, column)
    pq.write_table(table, path)
    return f"{path.name} {name}: {kind}"


def _changed_cell(cell: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """Change a cell: an element of a list or field of a struct, or the whole of it."""
    if isinstance(cell, list) and cell and rng.random() < 0.8:
        at = int(rng.integers(len(cell)))
        value, said = _changed_cell(cell[at], rng)
        return [*cell[:at], value, *cell[at + 1 :]], f"[{at}] {said}"
    if isinstance(cell, dict) and rng.random() < 0.9:
        key = sorted(cell)[int(rng.integers(len(cell)))]
        value, said = _changed_cell(cell[key], rng)
        return {**cell, key: value}, f"{key} {said}"
    if isinstance(cell, bytes) and cell and rng.random() < 0.8:
        content = bytearray(cell)
        at = int(rng.integers(len(content)))
        content[at] = (content[at] + int(rng.integers(1, 256))) % 256
        return bytes(content), f"byte {at}"
    if isinstance(cell, int | float) and rng.random() < 0.6:
        step = (1, -1, 7)[int(rng.integers(3))]
        return cell + step, f"{step:+}"
    if isinstance(cell, str) and rng.random() < 0.5:
        return cell + "s", "+s"
    odd: tuple[Any, ...] = (None, -1, 10**12, float("nan"), float("inf"), "", "x", b"", [])
    value = odd[int(rng.integers(len(odd)))]
    return value, f"= {value!r}"
