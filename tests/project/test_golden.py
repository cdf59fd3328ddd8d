"""What an earlier commit gave for a tiny recording is what this one gives."""

import json

import numpy as np
import pytest

from tests.golden import record
from tests.golden.comparison import array_record, differences, kept_lines

KEPT = {"mse": 1.25, "losses": [0.5, 0.25], "label": "Lift the block", "count": 3}


def test_an_old_checkpoint_and_its_cache_load_and_give_the_numbers_of_then(tmp_path):
    record.unpack_before(tmp_path)
    report = record.offline_report(
        tmp_path, "eval_offline", record.BEFORE_CHECKPOINT, record.BEFORE_CACHE
    )
    was = json.loads(record.RECORD_PATH.read_text("utf-8"))
    now = {"machine": record.machine(), "before": {"eval_offline": report}}
    kept = was["before"]["eval_offline"]
    assert kept["actions"]["model"]["mse"]["num_episodes"] == 2
    was = {"machine": was["machine"], "before": {"eval_offline": kept}}
    assert record.compared(was, now) == []


@pytest.mark.slow
def test_every_stage_gives_what_the_golden_record_says():
    assert record.check() == []


@pytest.mark.parametrize("exact", [True, False])
def test_a_difference_is_told_with_its_key_what_it_was_and_what_it_is(exact):
    now = KEPT | {"losses": [0.5, 0.26]}
    assert differences(KEPT, now, exact=exact) == ["losses/1\n    was 0.25\n    is  0.26"]
    gone = {name: value for name, value in KEPT.items() if name != "label"}
    assert differences(KEPT, gone, exact=exact) == [
        "label\n    was 'Lift the block'\n    is  '<missing>'"
    ]
    assert differences(gone, KEPT, exact=exact) == [
        "label\n    was '<missing>'\n    is  'Lift the block'"
    ]
    assert len(differences(KEPT, KEPT | {"losses": []}, exact=exact)) == 3


@pytest.mark.parametrize(
    ("was", "now", "is_alike"),
    [
        (1.0, 1.00009, True),
        (1.0, 1.0002, False),
        (3, 4, False),
        ("MSE 1.29 [−2.93, 5.51]", "MSE 1.30 [−2.93, 5.51]", True),
        ("MSE 1.29 [−2.93, 5.51]", "MSE 1.29 [2.93, 5.51]", False),
        ("MSE 1.29", "MSE 1.31", False),
        ("16 frames", "17 frames", False),
        ("B is better", "not resolved", False),
    ],
)
def test_another_machine_may_round_otherwise_and_no_more(was, now, is_alike):
    assert (differences({"value": was}, {"value": now}, exact=False) == []) is is_alike
    assert len(differences({"value": was}, {"value": now}, exact=True)) == 1


def test_an_array_is_compared_by_its_bits_here_and_by_its_statistics_elsewhere():
    array = np.linspace(0, 1, 40, dtype=np.float32).reshape(20, 2)
    was = {"cache": {"states": array_record(array)}}
    for change, alike_elsewhere in ((1e-7, True), (1e-2, False)):
        changed = array.copy()
        changed[3, 1] += np.float32(change)
        now = {"cache": {"states": array_record(changed)}}
        assert "cache/states/sha256" in differences(was, now, exact=True)[0]
        assert (differences(was, now, exact=False) == []) is alike_elsewhere


def test_times_and_versions_of_a_page_are_left_out(tmp_path):
    page = tmp_path / "report.md"
    page.write_text(
        "Made 2026-11-27 06:39 UTC on x86_64 Linux, Python 3.11.7, commit 3f21b4a.\n"
        "| main | C | 0 | 84f9d1a355 | ae5664e143 | numpy 2.4.6, python 3.11.7, torch 2.10.0 |\n"
    )
    assert kept_lines(page) == [
        "Made <when and where>",
        "| main | C | 0 | <hash> | <hash> | <versions> |",
    ]
