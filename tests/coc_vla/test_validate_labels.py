import base64
import dataclasses
import io
import json
import re

import pytest
from PIL import Image

from coc_vla.labels.record import LabelFile
from coc_vla.labels.trace import TraceStep
from coc_vla.validate_labels import ValidateLabelsConfig, run
from tests.fixtures.coc import GOOD_LABEL
from world_modality.system.errors import InvalidInputError, MissingFileError

SCRIPT = "<script>alert('no answer')</script>"


def of_episode(episode, **changes):
    return dataclasses.replace(GOOD_LABEL, episode_id=episode, **changes)


@pytest.fixture
def config(root, tmp_path):
    """A file with every kind of line: 2 labels with one text, an error, an invalid one, damage."""
    path = tmp_path / "coc.jsonl"
    steps = (*GOOD_LABEL.coc_text[:3], TraceStep("Move the block to (1, 2)", "its goal is there"))
    failed = {"coc_text": (), "error": "request failed: status 500", "raw_text": SCRIPT}
    with LabelFile(path) as file:
        file.append([of_episode(0), of_episode(2), of_episode(1, **failed)])
        file.append(
            [of_episode(3, coc_text=steps, model_name="other"), of_episode(9), of_episode(0)]
        )
    path.write_bytes(path.read_bytes() + b'{"episode')
    return ValidateLabelsConfig(labels_jsonl=path, dataset_name="local/tiny", dataset_root=root)


def test_the_report_counts_what_is_in_the_file(config, capsys):
    report = run(config)
    coverage = report["coverage"]
    assert (coverage["num_labels"], coverage["num_errors"]) == (4, 1)
    assert coverage["share"] == 3 / 6
    assert coverage["without_line"] == [4, 5]
    assert coverage["not_in_dataset"] == [9]
    assert report["lines"]["num_lines"] == 7
    assert report["lines"]["num_superseded"] == 1
    assert report["lines"]["damaged"][0] == {
        "line": 7,
        "reason": "has no end; its writing was interrupted",
        "is_torn": True,
    }
    assert report["errors"] == {"request failed: status N": {"count": 1, "episode": 1}}
    assert list(report["invalid"]["episodes"]) == ["3"]
    assert report["duplicates"]["episodes_with_several_labels"] == [0]
    assert report["duplicates"]["num_labels_with_shared_text"] == 3
    assert report["duplicates"]["num_distinct_texts"] == 2
    assert [origin["num_labels"] for origin in report["origins"]] == [3, 1]
    assert report["lengths"]["steps_per_label"]["median"] == 4
    assert report["words"]["most_frequent"]["block"] > 4
    written = json.loads(config.labels_jsonl.with_suffix(".report.json").read_text("utf-8"))
    assert written == report
    printed = capsys.readouterr().out
    assert "50.0% of the dataset" in printed
    assert "mixture" in printed
    assert "1. What: Move the open gripper" in printed


def test_a_file_can_be_looked_at_without_its_dataset(config):
    report = run(dataclasses.replace(config, dataset_name=None, dataset_root=None))
    assert report["coverage"]["share"] is None
    assert report["coverage"]["num_labels"] == 4
    with pytest.raises(InvalidInputError, match="--dataset_name"):
        run(dataclasses.replace(config, dataset_name=None, contact_sheet=config.labels_jsonl))


def test_the_contact_sheet_needs_nothing_beside_it_and_shows_every_keyframe(config, tmp_path):
    sheet = tmp_path / "sheets" / "sheet.html"
    run(dataclasses.replace(config, contact_sheet=sheet))
    page = sheet.read_text("utf-8")
    assert page.count("<article>") == 4  # episode 9 is not in the dataset
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(images) == 4 * 3
    assert Image.open(io.BytesIO(base64.b64decode(images[0]))).size == (40, 48)
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "1 whose frames the dataset does not have" in page
    assert page.index("episode 1,") < page.index("episode 0,")  # errors first
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page
    assert "a firm hold lets the block follow the hand" in page


def test_no_file_and_no_label_are_said_clearly(config, tmp_path):
    with pytest.raises(MissingFileError, match=r"coc_vla\.coc_generation"):
        run(dataclasses.replace(config, labels_jsonl=tmp_path / "nothing.jsonl"))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    report = run(dataclasses.replace(config, labels_jsonl=empty))
    assert report["coverage"]["share"] == 0
    assert report["lengths"]["steps_per_label"] is None
