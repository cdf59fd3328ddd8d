"""The report's ratios of corrupted to clean action error, in its table, figure and verdict."""

import csv
import json
import math
import re

import numpy as np
import pytest

from tests.fixtures.verdict import World, write_json, write_matrix, write_rollouts
from tests.verdict.conftest import block, starting, verdict_items
from world_modality.report import ReportConfig, build_document, run
from world_modality.statistics.proportions import wilson_interval
from world_modality.verdict.document import Figure, Table
from world_modality.verdict.evidence import collect_evidence
from world_modality.verdict.findings import (
    PairedEpisodes,
    closed_loop_effects,
)

ARMS = {"B": 0.0, "C": 0.0}
FACTORS = (4.34, 3.14, 1.91)


@pytest.fixture
def matrix(tmp_path):
    write_matrix(tmp_path / "runs", World(), ARMS)
    corrupt(tmp_path / "runs", "stale:8", FACTORS)
    return tmp_path / "runs"


def corrupt(runs, name, factors, *, with_episodes=True):
    """Rewrite C's reports, so that a corruption multiplies each seed's errors by a factor."""
    for seed, factor in enumerate(factors):
        (path,) = (runs / f"c_{seed}").glob("corrupt_world_*/corrupt_world.json")
        report = json.loads(path.read_text("utf-8"))
        clean = report["episodes"]["clean"]
        report["episodes"][name] = [factor * error for error in clean]
        report["corruptions"][name]["ratio"] = {
            "value": factor or None,
            "low": 0.9 * factor or None,
            "high": 1.1 * factor or None,
            "num_episodes": len(clean),
        }
        if not with_episodes:
            del report["episodes"]
        write_json(path, report)


def row_of(document, corruption):
    rows = block(document, Table, "corruption_offline").rows
    return next(row for row in rows if row[:2] == ("C", corruption))


def test_seeds_that_differ_give_the_geometric_mean_and_a_bound_above_0(matrix):
    document = build_document((matrix,))
    caption = block(document, Table, "corruption_offline").caption
    assert "Geometric mean over seeds" in caption
    assert "Not defined" not in caption
    assert "logarithmic axis" in block(document, Figure, "corruption").caption
    ratio, per_seed = row_of(document, "stale:8")[2:4]
    # The linear interval of these seeds is 3.1 ± 3.0.
    assert re.fullmatch(r"2\.96 \[1\.0\d, 8\.\d\d\]", ratio)
    assert per_seed == "4.34, 3.14, 1.91"


def test_a_bound_far_below_the_value_is_not_rounded_to_0(matrix):
    corrupt(matrix, "stale:8", (0.5, 40.0, 9.0))
    row = row_of(build_document((matrix,)), "stale:8")
    low, high = re.search(r"\[(.*), (.*)\]", row[2]).groups()
    assert row[-1] == "not resolved"
    assert 0 < float(low) < 0.1
    assert float(high) > 100


@pytest.mark.parametrize(("power", "reading"), [(1, "raises the error"), (-1, "lowers the error")])
def test_what_every_seed_says_alike_is_resolved(matrix, power, reading):
    corrupt(matrix, "stale:8", [factor**power for factor in (1.5, 1.6, 1.45)])
    row = row_of(build_document((matrix,)), "stale:8")
    assert row[2].startswith("1.52 [1.3" if power > 0 else "0.660 [0.5")
    assert row[-1] == reading


@pytest.mark.parametrize("wrong", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("corruption", ["stale:8", "task_shuffle"])
def test_a_ratio_without_a_value_is_counted_and_named_everywhere(
    matrix, tmp_path, wrong, corruption
):
    corrupt(matrix, corruption, (1.5, wrong, 1.4))
    out_dir = tmp_path / "report"
    document = run(ReportConfig((matrix,), out_dir))
    row = row_of(document, corruption)
    assert row[2:4] == ("not defined", "1.50, not defined, 1.40")
    assert row[-1] == "not defined: an error is 0 or not finite in 1 of 3 seeds"
    caption = block(document, Table, "corruption_offline").caption
    assert caption.endswith("Not defined: 1 of 6 ratios.")
    assert block(document, Figure, "corruption").caption.endswith("not defined: 1 ratio.")
    verdict = starting(verdict_items(document), "Use of the token")
    assert ("not defined" in verdict) == (corruption == "task_shuffle")
    assert "not defined: an error is 0" in (out_dir / "tables/corruption_offline.tex").read_text(
        "utf-8"
    )
    with (out_dir / "figures" / "corruption.csv").open(encoding="utf-8") as file:
        drawn = {(r["arm"], r["corruption"]): r for r in csv.DictReader(file)}
    step = {"stale:8": "stale 8", "task_shuffle": "task"}[corruption]
    assert [drawn["C", step][key] for key in ("value", "low", "high")] == ["", "", ""]
    assert float(drawn["C", "any code"]["value"]) == pytest.approx(1.5)


def test_reports_without_sums_by_episode_keep_their_geometric_mean_without_interval(matrix):
    corrupt(matrix, "stale:8", (1.0, 4.0, 2.0), with_episodes=False)
    row = row_of(build_document((matrix,)), "stale:8")
    assert row[2:4] == ("2.00", "1.00, 4.00, 2.00")
    assert row[-1] == "not resolved"


def test_rollouts_under_an_older_name_of_a_corruption_count_with_those_of_today(matrix):
    checkpoints = sorted(matrix.glob("c_*/*.pt"))
    write_rollouts(matrix / "none", World(), checkpoints, [0.5] * 3)
    write_rollouts(matrix / "old", World(), checkpoints[:2], [0.5] * 2, corruption="task")
    write_rollouts(matrix / "new", World(), checkpoints[2:], [0.5], corruption="task_marginal")
    rows = block(build_document((matrix,)), Table, "corruption_closed_loop").rows
    assert [tuple(row[:2]) for row in rows] == [("C", "task_marginal")]
    assert rows[0][5].startswith("3 seeds")


def test_one_seed_has_wilsons_and_newcombes_intervals_in_closed_loop(matrix):
    (checkpoint,) = matrix.glob("c_0/*.pt")
    for name, rate in (("none", 0.6), ("task", 0.3)):
        write_rollouts(matrix / name, World(), [checkpoint], [rate], corruption=name)
    evidence = collect_evidence([matrix])
    (effect,) = closed_loop_effects(evidence, evidence.main)
    own, wrong = (
        evidence.rollouts_of(evidence.main.runs["C"][0], name) for name in ("none", "task_marginal")
    )
    assert effect.clean == wilson_interval(own.num_solved, 30)
    assert effect.corrupted == wilson_interval(wrong.num_solved, 30)
    pair = PairedEpisodes.of(0, wrong.outcomes, own.outcomes)
    assert (effect.difference, effect.num_seeds) == (pair.difference, 1)
    assert effect.difference.value == pytest.approx(effect.corrupted.value - effect.clean.value)


def test_the_panel_of_ratios_is_logarithmic_and_that_of_success_is_not(matrix, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "world_modality.verdict.sections.corruption.svg_bytes",
        lambda figure: drawn.append(figure) or b"",
    )
    checkpoints = sorted(matrix.glob("c_*/*.pt"))
    for name in ("none", "task"):
        write_rollouts(matrix / name, World(), checkpoints, [0.5] * 3, corruption=name)
    corrupt(matrix, "task_shuffle", (1.5, 0.0, 1.4))
    build_document((matrix,))
    (figure,) = drawn
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear"]
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "1" in labels
    assert not any("10^" in label for label in labels)
    lines = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    # Stale, task (not defined), any code; the other arm reads no token.
    assert [np.isnan(line).tolist() for line in lines] == [[False] * 3, [False, True, False]]
