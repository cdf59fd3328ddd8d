import dataclasses
import json

import pytest

from benchmarks.rollouts.report import Comparison, Report, compare, summarise, tally
from tests.rollouts.conftest import ORIGIN, result

GROUPS = {"easy": ["left", "far"], "hard": ["right"], "unused": ["up"]}


def results(left: list[bool | None], right: list[bool | None]):
    """Return results of the three episodes of each task."""
    return [result(number, success) for number, success in enumerate(left + right)]


def test_errors_are_no_failures():
    counted = tally(results([True, None, False], [None, None, True]))
    assert (counted.num_solved, counted.num_episodes, counted.num_errors) == (2, 3, 3)
    assert counted.success_rate.value == pytest.approx(2 / 3)
    # Wilson (1927) for 2 of 3.
    assert counted.success_rate.low == pytest.approx(0.2077, abs=1e-4)
    assert counted.success_rate.high == pytest.approx(0.9385, abs=1e-4)


def test_nothing_but_errors_has_no_success_rate():
    counted = tally(results([None, None], []))
    assert (counted.success_rate.value, str(counted)) == (None, "n/a")


def test_steps_are_those_of_solved_episodes():
    counted = tally(
        [result(0, True, num_steps=10), result(1, True, num_steps=20), result(2, False)]
    )
    assert counted.mean_steps_solved == 15


def test_averages_weigh_tasks_and_groups_equally():
    found = summarise(
        "C",
        ORIGIN,
        [*results([True, True, None], [False, False, True]), result(0, True, task="far")],
        ["left", "right", "far"],
        GROUPS,
    )
    assert found.overall.success_rate.value == pytest.approx(4 / 6)
    assert found.task_average == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert {name: group.success_rate for name, group in found.groups.items()} == {
        "easy": 1,
        "hard": pytest.approx(1 / 3),
    }
    assert found.group_average == pytest.approx((1 + 1 / 3) / 2)
    assert found.steps_per_second == pytest.approx(12 / 0.5)


def report() -> Report:
    lefts = results([True, True, True], [True, None, True])
    rights = results([False, False, True], [False, False, False])
    return Report(
        suite="point",
        notes=("a note",),
        checkpoints=tuple(
            summarise(label, ORIGIN, own, ["left", "right"], GROUPS)
            for label, own in (("C", lefts), ("B", rights))
        ),
        comparisons=(compare("C", lefts, "B", rights),),
        throughput={"steps_per_second": None},
    )


def test_report_says_it_in_tables():
    text = report().markdown()
    assert "| left | 100.0 % [43.9, 100.0] (3/3) | 33.3 % [6.1, 79.2] (1/3) |" in text
    assert "| errors, not counted above | 1 | 0 |" in text
    assert "| average over 2 tasks | 100.0 % | 16.7 % |" in text
    assert "| group easy | 100.0 % (tasks: 1) | 33.3 % (tasks: 1) |" in text
    assert "| average over 2 groups |" in text
    assert "| C minus B | 1 | 4 | 0 | 0 | 1 | 80.0 % [" in text
    assert "C is better |" in text


def test_report_is_written_as_json_markdown_and_picture(tmp_path):
    report().write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "summary.json",
        "summary.md",
        "summary.png",
    ]
    record = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert record["checkpoints"][0]["tasks"]["left"]["success_rate"]["value"] == 1
    assert record["checkpoints"][0]["origin"]["checkpoint_sha256"] == "c0ffee"
    assert record["comparisons"][0]["verdict"] == "C is better"
    assert (tmp_path / "summary.md").read_text("utf-8") == report().markdown()
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")


def comparison(both, only_first, only_second, neither):
    return Comparison("C", "B", both, only_first, only_second, neither, 0)


def test_verdict_names_the_better_one_only_where_the_interval_excludes_zero():
    assert comparison(20, 12, 2, 16).verdict == "C is better"
    assert comparison(20, 2, 12, 16).verdict == "B is better"
    assert comparison(20, 4, 2, 16).verdict == "not resolved: the interval spans 0"
    assert comparison(0, 0, 0, 0).verdict == "not resolved: no episode in common"


def test_episodes_are_paired_and_those_with_an_error_left_out():
    first = [result(0, True), result(1, True), result(2, False), result(3, None), result(4, False)]
    second = [result(0, True), result(1, False), result(2, True), result(3, True), result(5, True)]
    found = compare("C", first, "B", reversed(second))
    assert found == Comparison("C", "B", 1, 1, 1, 0, num_errors=1)


def test_episodes_of_different_initial_states_are_no_pair():
    moved = dataclasses.replace(result(0), initial_state=1)
    assert not any(compare("C", [result(0)], "B", [moved]).counts)
