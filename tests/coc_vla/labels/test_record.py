import json
from dataclasses import replace

import pytest

from coc_vla.labels.record import CocLabel, LabelFile, read_labels, read_records, scan_labels
from coc_vla.labels.settings import settings_changes, write_settings
from tests.fixtures.chat_server import GOOD_ANSWER, GOOD_STEPS
from tests.fixtures.coc import GOOD_LABEL
from world_modality.system.errors import InvalidInputError

LABEL = replace(GOOD_LABEL, episode_id=3, raw_text=GOOD_ANSWER + " – ünïcode \ud83d")
ERROR = replace(LABEL, coc_text=(), error="answer refused: too short")
FIELDS = [
    *("episode_id", "instruction", "keyframe_indices", "coc_text", "raw_text", "model_name"),
    *("backend", "prompt_sha256", "seed", "error", "seconds", "tokens", "attempts"),
    "checksum",
]


def written(path, *labels):
    with LabelFile(path) as file:
        file.append(labels)
    return path


def without_checksum(**changes):
    content = {**json.loads(LABEL.to_json()), **changes}
    return json.dumps({name: value for name, value in content.items() if name != "checksum"})


def test_a_line_has_exactly_the_documented_fields():
    content = json.loads(LABEL.to_json())
    assert list(content) == FIELDS
    assert content["coc_text"][0] == {"what": GOOD_STEPS[0][0], "why": GOOD_STEPS[0][1]}


@pytest.mark.parametrize("indices", [[], [-1, 3], [0, 3, 3], [5, 0], [0.5], ["0"]])
def test_keyframes_that_are_no_frames_in_their_order_are_damage(indices):
    with pytest.raises(ValueError, match="keyframe_indices"):
        CocLabel.from_json(without_checksum(keyframe_indices=indices))


def test_a_record_is_either_a_label_or_an_error():
    with pytest.raises(ValueError, match="either"):
        replace(LABEL, error="x")
    with pytest.raises(ValueError, match="either"):
        replace(LABEL, coc_text=())


def test_the_newest_label_counts_and_an_error_never_hides_one(tmp_path):
    path = tmp_path / "a.jsonl"
    newer = replace(LABEL, seed=8)
    other = replace(ERROR, episode_id=1)
    written(path, other, ERROR, LABEL, newer, ERROR, replace(other, seed=9))
    assert read_labels(path) == [newer]
    assert read_records(path) == [replace(other, seed=9), newer]
    scan = scan_labels(path)
    assert (scan.num_lines, scan.num_superseded, scan.repeated) == (6, 4, (3,))


@pytest.mark.parametrize("kept", [1, 40, -2, -1])
def test_a_torn_last_line_is_cut_and_the_rest_kept(tmp_path, kept):
    path = written(tmp_path / "a.jsonl", LABEL)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    assert read_labels(path) == [LABEL]
    with LabelFile(path) as file:
        scan = file.repair()
        assert [line.is_torn for line in scan.damaged] == [True]
        assert path.read_bytes() == whole
        file.append([ERROR])
    assert scan_labels(path).num_lines == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 200 + b"\n",
        b"[]\n",
        b'{"episode_id": 3}\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        LABEL.to_json().replace('"seed": 7', '"seed": true').encode() + b"\n",
        LABEL.to_json().replace('"error": null', '"error": "x"').encode() + b"\n",
        # A text that can neither be printed nor be sent.
        without_checksum(model_name="\ud83d").encode() + b"\n",
    ],
)
def test_damage_before_the_end_is_named_and_taken_out_by_a_resuming_writer(tmp_path, damage):
    path = written(tmp_path / "a.jsonl", LABEL)
    whole = path.read_bytes()
    path.write_bytes(b"\n" + damage + whole + whole[:30])
    with pytest.raises(InvalidInputError, match=r"1 damaged lines, the first is line 2.*--resume"):
        read_labels(path)
    with LabelFile(path) as file:
        assert len(file.repair().damaged) == 2
    assert read_labels(path) == [LABEL]
    assert path.read_bytes().strip() == whole.strip()


def test_a_second_writer_and_a_folder_that_cannot_be_written_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    with LabelFile(path), pytest.raises(InvalidInputError, match=r"--output_jsonl.*one writer"):
        LabelFile(path)
    written(path, LABEL)
    with pytest.raises(InvalidInputError, match="cannot be written"):
        LabelFile(path / "a.jsonl")
    with pytest.raises(InvalidInputError, match="is a folder"):
        LabelFile(tmp_path)


def test_changed_settings_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    settings = {"model_name": "a", "prompt_sha256": "1", "seed": 0}
    assert settings_changes(path, settings) == []
    write_settings(path, settings)
    assert settings_changes(path, dict(settings)) == []
    changed = {**settings, "model_name": "b"}
    assert settings_changes(path, changed) == ["model_name was 'a', is 'b'"]
    write_settings(path, changed, keep_earlier=True)
    assert settings_changes(path, changed) == []
    (tmp_path / "a.settings.json").write_text("{")
    with pytest.raises(InvalidInputError, match="damaged"):
        settings_changes(path, settings)
