r"""Success against the length of an outage, of several evaluations: a figure and a table.

python -m benchmarks.rollouts.outage_curve --rollouts rollouts_0 rollouts_20 rollouts_40 \
    --out_dir outage_curve

One line an arm, and one for each token that arm C reads in the dark. Where an arm has several
checkpoints, one a training seed, its interval is over seeds and episodes.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from world_modality.arms import ARMS, arm_order
from world_modality.statistics.intervals import Interval
from world_modality.statistics.proportions import wilson_interval
from world_modality.system.atomic import replacing, write_json
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.verdict.measures import Scores, mean_of
from world_modality.verdict.rollout_file import PolicyRollouts, read_rollouts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IN_THE_DARK = {
    "own_prediction": "own prediction",
    "hold": "last token held",
    "true_token": "true token (oracle)",
    "own": "token of a black image",
}
# What may differ between the evaluations of one curve.
_OF_THE_CURVE = ("outage", "world_input", "dark_frames")


@dataclass(frozen=True)
class OutageCurveConfig:
    """Draw success against the length of an outage, from the results of several evaluations."""

    rollouts: tuple[Path, ...]
    """Folders of evaluations (or their results.jsonl), one or more of each outage length. Those
    without an outage are the curve's beginning."""
    out_dir: Path = Path("outage_curve")
    """Folder that receives outage_curve.svg, .png, .csv, .md and .json."""


@dataclass(frozen=True)
class CurvePoint:
    """An arm's success at one length.

    Attributes:
        line: the arm, and what it reads in the dark.
        length: frames for which the cameras are dark; 0 for no outage.
        success_rate: its value, with its 95 % interval.
        num_checkpoints: how many trainings of the arm there are.
        num_errors: episodes that ended in an error and are not counted.
    """

    line: str
    length: int
    success_rate: Interval
    num_checkpoints: int
    num_errors: int


@dataclass(frozen=True)
class TokenDifference:
    """Two tokens read in the dark by the same checkpoints in the same episodes.

    Attributes:
        arm: which.
        first, second: what is read.
        length: frames for which the cameras are dark.
        difference: success with the first minus that with the second.
    """

    arm: str
    first: str
    second: str
    length: int
    difference: Interval


Line = dict[int, dict[str, PolicyRollouts]]
"""By length and by the checkpoint's SHA-256."""


def run(config: OutageCurveConfig) -> tuple[list[CurvePoint], list[TokenDifference]]:
    """Read the evaluations; print and write the curve.

    Raises:
        MissingFileError: a folder holds no results.
        InvalidInputError: results are damaged, were made under different conditions, hold the same
            thing twice, or have no outage at all.
    """
    lines = _lines([one for path in config.rollouts for one in _read(path)])
    points = [_point(name, length, lines[name][length]) for name, length in _places(lines)]
    differences = _differences(lines)
    table = _markdown(points, differences)
    print(table)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    _write(config.out_dir / "outage_curve.md", table.encode())
    _write(config.out_dir / "outage_curve.csv", _csv(points))
    content = {
        "rollouts": [str(path) for path in config.rollouts],
        "points": [asdict(point) for point in points],
        "differences": [asdict(one) for one in differences],
    }
    write_json(config.out_dir / "outage_curve.json", content)
    _draw(points, config.out_dir)
    print(f"{config.out_dir} written")
    return points, differences


def _read(path: Path) -> list[PolicyRollouts]:
    file = path / "results.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise MissingFileError(
            f"no {file}; name folders that an evaluation wrote, such as --out_dir of "
            "python -m benchmarks.metaworld.eval_metaworld_success"
        )
    try:
        found = read_rollouts(file)
    except InvalidInputError as error:
        raise InvalidInputError(f"{file}: {error}") from error
    return [one for one in found if one.corruption == "none"]


def _lines(rollouts: Sequence[PolicyRollouts]) -> dict[str, Line]:
    """Sort rollouts into lines; those without an outage begin every line of their checkpoint."""
    if rollouts:
        _require_same_conditions(rollouts)
    lines: dict[str, Line] = {}
    for one in rollouts:
        if one.outage_length:
            _add(lines.setdefault(_name(one), {}), one)
    if not lines:
        raise InvalidInputError(
            "none of the rollouts has an outage; roll out with --outage_length and --outage_start"
        )
    for line in lines.values():
        own = {sha256 for of_length in line.values() for sha256 in of_length}
        for one in rollouts:
            if not one.outage_length and one.checkpoint_sha256 in own:
                _add(line, one)
    return lines


def _add(line: Line, one: PolicyRollouts) -> None:
    of_length = line.setdefault(one.outage_length, {})
    before = of_length.get(one.checkpoint_sha256)
    if before is not None:
        raise InvalidInputError(
            f"{before.file} and {one.file} both have {one.checkpoint} with an outage of "
            f"{one.outage_length} frames; name one of them"
        )
    of_length[one.checkpoint_sha256] = one


def _require_same_conditions(rollouts: Sequence[PolicyRollouts]) -> None:
    starts = {str(one.conditions["outage"]["start"]): one for one in rollouts if one.outage_length}
    if len(starts) > 1:
        (start, one), (other_start, other) = list(starts.items())[:2]
        raise InvalidInputError(
            f"{one.file} has --outage_start {start} and {other.file} {other_start}: outages of one "
            "curve begin in the same frames"
        )
    first, *others = rollouts
    for other in others:
        names = (first.conditions.keys() | other.conditions.keys()) - set(_OF_THE_CURVE)
        differing = [
            name
            for name in sorted(names)
            if first.conditions.get(name) != other.conditions.get(name)
        ]
        if differing:
            shown = "; ".join(
                f"{name} {first.conditions.get(name)} and {other.conditions.get(name)}"
                for name in differing
            )
            raise InvalidInputError(
                f"{first.file} and {other.file} were rolled out differently: {shown}"
            )


def _name(one: PolicyRollouts) -> str:
    """Return the name of a line, such as `C, own prediction`."""
    parts = [_arm(one)]
    if "world_input" in one.policy:
        parts.append(_IN_THE_DARK[one.policy["world_input"]])
    if one.policy.get("dark_frames") == "black":
        parts.append("black images")
    return ", ".join(parts)


def _arm(one: PolicyRollouts) -> str:
    kind = one.policy.get("model_type", "?"), one.policy.get("token_control", "none")
    return next((n for n, arm in ARMS.items() if (arm.model_type, arm.control) == kind), kind[0])


def _places(lines: Mapping[str, Line]) -> Iterable[tuple[str, int]]:
    """Return lines and their lengths, in the order of tables."""
    reads = list(_IN_THE_DARK.values())

    def order(name: str) -> tuple[Any, ...]:
        arm, *rest = name.split(", ")
        return (*arm_order(arm), [reads.index(one) if one in reads else -1 for one in rest])

    return [(name, length) for name in sorted(lines, key=order) for length in sorted(lines[name])]


def _point(name: str, length: int, by_checkpoint: Mapping[str, PolicyRollouts]) -> CurvePoint:
    seeds = list(by_checkpoint.values())
    if len(seeds) == 1:
        rate = wilson_interval(seeds[0].num_solved, seeds[0].num_counted)
    else:
        rate = _mean([{key: float(o) for key, o in _counted(one).items()} for one in seeds])
    return CurvePoint(name, length, rate, len(seeds), sum(one.num_errors for one in seeds))


def _counted(one: PolicyRollouts) -> dict[Any, bool]:
    return {key: outcome for key, outcome in one.outcomes.items() if outcome is not None}


def _mean(by_seed: Sequence[Mapping[Any, float]]) -> Interval:
    """Return a mean over seeds and episodes with its interval; without any, nothing."""
    if not any(by_seed):
        return Interval(None, None, None, 0)
    scores: list[Scores] = [{key: (value, 1.0) for key, value in one.items()} for one in by_seed]
    return mean_of(scores, lambda key: key[0]).interval  # type: ignore[index]


def _differences(lines: Mapping[str, Line]) -> list[TokenDifference]:
    """Compare what arm C reads in the dark: the oracle and its prediction with the held token."""
    found = []
    held = _IN_THE_DARK["hold"]
    for name in lines:
        arm, *rest = name.split(", ")
        if not rest or rest[0] in (held, "black images"):
            continue
        other = lines.get(", ".join([arm, held, *rest[1:]]), {})
        for length in sorted(lines[name].keys() & other.keys() - {0}):
            pairs = [
                _paired(lines[name][length][sha256], other[length][sha256])
                for sha256 in lines[name][length].keys() & other[length].keys()
            ]
            if any(pairs):
                found.append(TokenDifference(arm, rest[0], held, length, _mean(pairs)))
    return found


def _paired(one: PolicyRollouts, other: PolicyRollouts) -> dict[Any, float]:
    first, second = _counted(one), _counted(other)
    return {key: float(first[key]) - float(second[key]) for key in first if key in second}


def _markdown(points: Sequence[CurvePoint], differences: Sequence[TokenDifference]) -> str:
    lengths = sorted({point.length for point in points})
    names = list(dict.fromkeys(point.line for point in points))
    cells = {(p.line, p.length): p.success_rate.percent for p in points}
    counts = {p.line: max(q.num_checkpoints for q in points if q.line == p.line) for p in points}
    header = ["success, by frames in the dark", "trainings", *map(str, lengths)]
    rows = [
        [name, str(counts[name]), *(cells.get((name, length), "–") for length in lengths)]
        for name in names
    ]
    parts = [_table(header, rows)]
    if differences:
        body = [
            [one.arm, f"{one.first} minus {one.second}", str(one.length), one.difference.percent]
            for one in differences
        ]
        parts.append(_table(["arm", "in the same episodes", "frames", "difference"], body))
    parts.append(
        "95 % intervals: over seeds and episodes where there are several trainings, else Wilson's."
    )
    num_errors = sum(point.num_errors for point in points if point.num_errors)
    if num_errors:
        parts.append(f"{num_errors} episodes ended in an error and are not counted.")
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _csv(points: Sequence[CurvePoint]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    counted = ("num_episodes", "num_checkpoints", "num_errors")
    writer.writerow(["line", "outage_length", "success", "low", "high", *counted])
    for point in points:
        rate = point.success_rate
        counts = [rate.num_episodes, point.num_checkpoints, point.num_errors]
        writer.writerow([point.line, point.length, rate.value, rate.low, rate.high, *counts])
    return text.getvalue().encode()


def _draw(points: Sequence[CurvePoint], folder: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from world_modality.verdict.drawing import svg_bytes

    figure = _figure(points)
    _write(folder / "outage_curve.svg", svg_bytes(figure))
    FigureCanvasAgg(figure)
    with replacing(folder / "outage_curve.png") as partial:
        figure.savefig(partial, dpi=120, format="png")


def _figure(points: Sequence[CurvePoint]) -> "Figure":
    from world_modality.verdict.drawing import figure_legend, line_styles, new_figure

    figure, (axis,) = new_figure(7, 4.5)
    names = list(dict.fromkeys(point.line for point in points))
    for name, style in line_styles(names).items():
        own = [point for point in points if point.line == name]
        lengths = [point.length for point in own]
        # What has no value is None, which an array of floats holds as not-a-number.
        value, low, high = (
            np.array([getattr(point.success_rate, bound) for point in own], float)
            for bound in ("value", "low", "high")
        )
        axis.plot(lengths, value, label=name, **style)
        axis.fill_between(lengths, low, high, color=style["color"], alpha=0.12, linewidth=0)
    axis.set_ylim(0, 1)
    axis.set_xlabel("frames for which the cameras are dark")
    axis.set_ylabel("success rate (band: 95 % interval)")
    figure_legend(figure, ncols=2, fontsize=9)
    return figure


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


def main() -> None:
    """Run the stage from the command line."""
    run_cli(OutageCurveConfig, run)


if __name__ == "__main__":
    main()
