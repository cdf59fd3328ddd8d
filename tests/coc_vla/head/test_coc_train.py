import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from coc_vla.head.decoding import write_traces
from coc_vla.head.text_head import Explainer
from coc_vla.train import run
from tests.fixtures.coc import (
    DOWN,
    SPEC,
    UP,
    all_labels,
    coc_train_config,
    is_up,
    label,
    write_coc_cache,
    write_labels,
)
from tests.fixtures.policy import assert_same_weights, weights
from world_modality.evaluation.offline_run import OfflineConfig, OfflineRun
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.policy.config import flags_of, stored_train_config
from world_modality.policy.predictions import hidden_states
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.training.single import run as train_policy

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_coc_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return all_labels(tmp_path_factory.mktemp("labels") / "labels.jsonl")


@pytest.fixture(scope="module")
def trained(cache, labels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_heads")
    return run(coc_train_config(cache, labels, folder, dropout=0.1, num_epochs=3))


def one_head(config):
    return stored_train_config(flags_of(config))[0]


def head_weights(path):
    return load_checkpoint(path, CPU).auxiliary_head["weights"]


def test_a_weight_of_zero_trains_the_policy_alone_to_the_bit(cache, labels, tmp_path):
    config = coc_train_config(
        cache, labels, tmp_path / "zero", coc_loss_weight=0.0, dropout=0.1, world_input_dropout=0.3
    )
    zero = run(config)
    alone = train_policy(dataclasses.replace(one_head(config), log_dir=tmp_path / "alone"))
    assert_same_weights(weights(zero.checkpoint), weights(alone.checkpoint))
    assert {k: v for k, v in zero.metrics.items() if "coc" not in k} == alone.metrics


def test_a_positive_weight_starts_alike_and_draws_the_same_dropout(cache, labels, tmp_path):
    # With a vanishing weight the text changes nothing but through random numbers, if it drew any.
    config = coc_train_config(cache, labels, tmp_path / "tiny", coc_loss_weight=1e-30, dropout=0.1)
    alone = train_policy(dataclasses.replace(one_head(config), log_dir=tmp_path / "alone"))
    assert_same_weights(weights(run(config).checkpoint), weights(alone.checkpoint))


def test_the_text_loss_reaches_the_trunk(trained, cache, labels, tmp_path):
    config = coc_train_config(cache, labels, tmp_path, dropout=0.1, num_epochs=3, coc_loss_weight=0)
    first, second = weights(trained.checkpoint), weights(run(config).checkpoint)
    assert not torch.equal(first["fut_queries"], second["fut_queries"])


def test_a_resumed_run_ends_bit_identical(trained, cache, labels, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.checkpoint.parent, folder)
    (folder / "model_C_epoch2.pt").unlink()
    torch.manual_seed(999)
    config = coc_train_config(cache, labels, folder, dropout=0.1, num_epochs=3, resume=True)
    resumed = run(config)
    assert_same_weights(weights(trained.checkpoint), weights(resumed.checkpoint))
    assert_same_weights(head_weights(trained.checkpoint), head_weights(resumed.checkpoint))
    logs = [(f / "metrics.jsonl").read_text() for f in (trained.checkpoint.parent, folder)]
    assert logs[0] == logs[1]
    assert "val_coc_loss" in logs[0]


def test_resuming_with_other_labels_or_another_weight_is_refused(trained, cache, labels, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.checkpoint.parent, folder)
    other = write_labels(tmp_path / "other.jsonl", [label(e, UP) for e in range(30)])
    config = coc_train_config(cache, other, folder, dropout=0.1, num_epochs=3, resume=True)
    with pytest.raises(InvalidInputError, match=r"other\.jsonl is not the label file"):
        run(config)
    changed = dataclasses.replace(config, labels_jsonl=labels, coc_loss_weight=0.7)
    with pytest.raises(InvalidInputError, match=r"--coc_loss_weight 0\.2 then, 0\.7 now"):
        run(changed)


def test_a_checkpoint_explains_without_the_tokenizers_folder(cache, labels, tmp_path):
    from transformers import AutoTokenizer

    from tests.fixtures.text import PACKAGED_FOLDER

    folder = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(PACKAGED_FOLDER).save_pretrained(folder)
    config = coc_train_config(
        cache, labels, tmp_path / "logs", text_tokenizer=str(folder), num_epochs=1
    )
    path = run(config).checkpoint
    shutil.rmtree(folder)
    stored = load_checkpoint(path, CPU)
    explainer = Explainer.of(stored, CPU)
    opened = OfflineRun.open(OfflineConfig(path, cache.dataset_name, cache.cache_dir, device="cpu"))
    hidden = hidden_states(opened.policy, opened.tensors, opened.val_frames[:2])
    assert len(write_traces(explainer.decoder, explainer.tokenizer, hidden)) == 2
    assert explainer.tokenizer.decode(explainer.tokenizer.encode(UP))[1].what == "lift the cube"


def test_held_out_labels_teach_neither_tokenizer_nor_weights(cache, labels, tmp_path):
    val = set(cache.manifest["split"]["val"])
    changed = write_labels(
        tmp_path / "changed.jsonl",
        [label(e, DOWN if (e in val) == is_up(e) else UP) for e in range(SPEC.num_episodes)],
    )
    first, second = (
        run(coc_train_config(cache, path, tmp_path / name, num_epochs=1))
        for name, path in (("a", labels), ("b", changed))
    )
    assert_same_weights(weights(first.checkpoint), weights(second.checkpoint))
    assert_same_weights(head_weights(first.checkpoint), head_weights(second.checkpoint))
    assert first.metrics["val_coc_loss"] != second.metrics["val_coc_loss"]


def test_episodes_without_a_label_give_no_loss_and_are_counted(cache, tmp_path, capsys):
    train = cache.manifest["split"]["train"]
    records = [label(e, UP if e == train[0] else None) for e in train[:3]]
    path = write_labels(tmp_path / "few.jsonl", records)
    metrics = run(coc_train_config(cache, path, tmp_path / "logs", num_epochs=1)).metrics
    printed = capsys.readouterr().out
    assert f"1 of {len(train)} training episodes" in printed
    assert "2 errors" in printed
    assert metrics["train_coc_loss"] > 0
    assert "val_coc_loss" not in metrics


def test_labels_that_do_not_fit_are_refused(cache, tmp_path):
    val = cache.manifest["split"]["val"]
    bad = {
        r"labels episode 77, which .* does not have": [label(0, UP), label(77, UP, "do task 1")],
        r"instruction 'fold the towel', but the cache says 'do task 0'": [
            label(0, UP, "fold the towel")
        ],
        r"no label of a training episode": [label(val[0], UP), label(0, None)],
    }
    for number, (message, records) in enumerate(bad.items()):
        path = write_labels(tmp_path / f"{number}.jsonl", records)
        with pytest.raises(InvalidInputError, match=message):
            run(coc_train_config(cache, path, tmp_path / "logs"))
    with pytest.raises(MissingFileError, match="coc_generation"):
        run(coc_train_config(cache, tmp_path / "none.jsonl", tmp_path / "logs"))
    assert list((tmp_path / "logs").glob("*")) == [tmp_path / "logs" / ".lock"]


def test_flags_that_do_not_fit_are_refused(cache, labels, tmp_path):
    for message, changes in {
        "--max_text_tokens 8, the longest has": {"max_text_tokens": 8},
        "--text_context lang.*--use_language": {"text_context": "lang", "use_language": False},
        "--text_width 32 must be a multiple of --text_heads 3": {"text_heads": 3},
    }.items():
        with pytest.raises(InvalidInputError, match=message):
            run(coc_train_config(cache, labels, tmp_path / "logs", **changes))
    with pytest.raises(InvalidInputError, match="--coc_loss_weight must not be negative"):
        coc_train_config(cache, labels, tmp_path / "logs", coc_loss_weight=-1.0)
    assert list((tmp_path / "logs").glob("*")) == [tmp_path / "logs" / ".lock"]


def test_a_one_head_checkpoint_has_no_explainer(cache, labels, tmp_path):
    config = coc_train_config(cache, labels, tmp_path, num_epochs=1, coc_loss_weight=0.0)
    with pytest.raises(InvalidInputError, match="explaining head is untrained"):
        Explainer.of(load_checkpoint(run(config).checkpoint, CPU), CPU)
    alone = dataclasses.replace(one_head(config), log_dir=tmp_path / "alone")
    with pytest.raises(InvalidInputError, match=r"no explaining head.*coc_vla\.train"):
        Explainer.of(load_checkpoint(train_policy(alone).checkpoint, CPU), CPU)


def test_through_the_command_line(cache, labels, tmp_path):
    command = [sys.executable, "-m", "coc_vla.train", "--dataset_name", cache.dataset_name]
    command += ["--cache_dir", str(cache.cache_dir), "--log_dir", str(tmp_path / "logs")]
    command += ["--labels_jsonl", str(labels), "--use_language", "--num_epochs", "1"]
    command += ["--d_model", "32", "--n_layers", "1", "--text_width", "32", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "coc head:" in done.stdout
    assert (tmp_path / "logs" / "model_C_epoch0.pt").exists()
