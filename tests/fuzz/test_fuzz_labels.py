"""A file of labels with one random change is refused, or read as the undamaged one, or the change
is said.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from coc_vla import coc_generation, score_labels, train, validate_labels
from coc_vla.coc_generation import CocGenerationConfig
from coc_vla.labels.record import CocLabel, LabelFile, read_labels, scan_labels
from tests.fixtures.coc import coc_train_config
from tests.fixtures.lerobot import make_dataset
from tests.fuzz.damage import (
    Stage,
    change_byte,
    change_json,
    change_rows,
    damage_file,
    drawn,
    run_cases,
)
from world_modality.cache.contract import Cache
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.precompute_world_tokens import PrecomputeConfig
from world_modality.precompute_world_tokens import run as precompute_world_tokens

NUM_CASES = 500
NUM_CASES_WITHOUT_CHECKSUM = 150
NAME = "local/tiny"
NUM_EPISODES = 8
AXES = {"position_dims": (0, 1, 2), "gripper_dim": "none"}


def change_line(path, rng):
    """Change one key or value of one record."""
    lines = path.read_text("utf-8").splitlines()
    at = int(rng.integers(len(lines)))
    content, said = change_json(json.loads(lines[at]), rng)
    lines[at] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")
    return f"line {at + 1} {said}"


def change_lines(path, rng):
    """Remove, double or swap a line."""
    lines, said = change_rows(path.read_text("utf-8").splitlines(), rng)
    path.write_text("\n".join(lines) + "\n")
    return said


DAMAGE = {change_byte: 0.4, change_line: 0.4, change_lines: 0.18, damage_file: 0.02}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with a dataset, its cache, and labels of its episodes."""
    home = tmp_path_factory.mktemp("home")
    root = make_dataset(home / "tiny", num_episodes=NUM_EPISODES, num_frames=20)
    config = PrecomputeConfig(
        dataset_name=NAME,
        dataset_root=root,
        cache_dir=home / "cache",
        vision_model_name="pixel-pca",
        pixel_pca_size=8,
        pixel_pca_components=6,
        vq_num_tokens=8,
        val_fraction=0.25,
    )
    precompute_world_tokens(config)
    path = home / "coc.jsonl"
    labels = CocGenerationConfig(
        dataset_name=NAME, dataset_root=root, output_jsonl=path, backend="rules", **AXES
    )
    coc_generation.run(labels)
    first = read_labels(path)[0]
    failed = dataclasses.replace(first, coc_text=(), error="answer refused: too short")
    text = path.read_text("utf-8")
    with LabelFile(path) as file:
        file.empty()
        file.append([failed])
    path.write_text(path.read_text("utf-8") + text)
    return home


def stages(home, path, out):
    root = home / "tiny"
    validate = validate_labels.ValidateLabelsConfig(
        path, dataset_name=NAME, dataset_root=root, output_json=out / "report.json"
    )
    score = score_labels.ScoreConfig(
        path,
        NAME,
        root,
        out_dir=out / "scores",
        num_shuffles=2,
        **AXES,
    )
    cache = Cache(home / "cache", NAME)
    small = {"use_language": False, "num_epochs": 1, "d_model": 16, "text_width": 16}
    training = coc_train_config(cache, path, out / "logs", max_text_tokens=512, **small)

    def scores():
        content = json.loads((out / "scores" / "score_labels.json").read_text("utf-8"))
        return {name: value for name, value in content.items() if name != "labels_jsonl"}

    def weights():
        stored = load_checkpoint(out / "logs" / "model_C_epoch0.pt", torch.device("cpu"))
        both = {**stored.model, **stored.auxiliary_head["weights"]}
        return {name: value.tolist() for name, value in both.items()}

    def report():
        return json.loads((out / "report.json").read_text("utf-8"))

    return {
        "validate": Stage(validate_labels.run, validate, report),
        "score": Stage(score_labels.run, score, scores),
        "train": Stage(train.run, training, weights),
    }


@pytest.fixture(scope="module")
def expected(home):
    made = stages(home, home / "coc.jsonl", home / "out")
    results = {name: stage.result() for name, stage in made.items()}
    assert results["validate"]["coverage"]["num_labels"] == NUM_EPISODES
    return results


def verdict(name, outcome, found, expected, path, intact):
    """Say what a stage that went through made of a changed file; `intact` is the other one."""
    written = {CocLabel.from_json(line) for line in intact.read_text("utf-8").splitlines()}
    scan = scan_labels(path)
    if not set(scan.records.values()) <= written:
        return "silently different"
    if name == "validate":
        # The report says what it found, so that it may differ where the damage is named.
        lines, as_written = found["lines"], expected["lines"]
        told = (lines["num_damaged"], lines["num_lines"]) != (0, as_written["num_lines"])
        return "told" if told else "same" if found == expected else "silently different"
    if scan.records == scan_labels(intact).records:
        return "same" if found == expected else "silently different"
    # A line is gone: the file is one of fewer labels, and every stage counts them.
    num_labels = len(scan.labelled)
    counted = {"score": f"{num_labels} labels", "train": "training episodes"}[name]
    return "told" if counted in outcome.said else "silently different"


@pytest.mark.slow
def test_labels_with_one_random_change_are_refused_or_the_change_is_told(home, expected, tmp_path):
    intact = home / "coc.jsonl"

    def prepare(out, rng):
        path = Path(shutil.copy(intact, out))
        return drawn(DAMAGE, rng)(path, rng), stages(home, path, out)

    def judge(out, name, outcome, found):
        return verdict(name, outcome, found, expected[name], out / "coc.jsonl", intact)

    counts = run_cases(tmp_path, NUM_CASES, prepare, judge)
    assert counts["train", "refused"] > NUM_CASES / 2, "the damage is real"
    assert counts["validate", "told"] > NUM_CASES / 2, "the damage is real"


@pytest.mark.slow
def test_labels_of_before_checksums_with_one_random_change_end_in_no_traceback(home, tmp_path):
    lines = [json.loads(line) for line in (home / "coc.jsonl").read_text("utf-8").splitlines()]
    bare = [{k: v for k, v in line.items() if k != "checksum"} for line in lines]

    def prepare(out, rng):
        path = out / "coc.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in bare))
        return change_line(path, rng), stages(home, path, out)

    run_cases(tmp_path, NUM_CASES_WITHOUT_CHECKSUM, prepare, lambda *_: "done")
