import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coc_vla.eval_coc import EvalCocConfig
from coc_vla.eval_coc import run as evaluate
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
from world_modality.evaluation.offline_config import OfflineConfig
from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.policy.config import flags_of, from_flags, stored_train_config
from world_modality.policy.predictions import hidden_states
from world_modality.system.cli import flag_arguments
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.training.single import run as train_policy

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_coc_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return all_labels(tmp_path_factory.mktemp("labels") / "labels.jsonl")


@pytest.fixture
def config(cache, labels, tmp_path):
    """Train for one epoch."""
    return coc_train_config(cache, labels, tmp_path / "logs", num_epochs=1)


@pytest.fixture(scope="module")
def trained(cache, labels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_heads")
    return run(coc_train_config(cache, labels, folder, dropout=0.1, num_epochs=3))


def one_head(config):
    return stored_train_config(flags_of(config))[0]


def changed(config, **flags):
    return from_flags(type(config), flags_of(config) | flags)


def alone(config, tmp_path):
    """Train the same policy without the head."""
    return train_policy(replace(one_head(config), log_dir=tmp_path / "alone"))


def assert_same_run(first, second):
    assert_same_weights(weights(first.checkpoint), weights(second.checkpoint))
    heads = (load_checkpoint(r.checkpoint, CPU).auxiliary_head["weights"] for r in (first, second))
    assert_same_weights(*heads)


def test_a_weight_of_zero_trains_the_policy_alone_to_the_bit(config, tmp_path):
    config = changed(
        config, num_epochs=2, coc_loss_weight=0.0, dropout=0.1, world_input_dropout=0.3
    )
    zero, policy = run(config), alone(config, tmp_path)
    assert_same_weights(weights(zero.checkpoint), weights(policy.checkpoint))
    assert {k: v for k, v in zero.metrics.items() if "coc" not in k} == policy.metrics
    with pytest.raises(InvalidInputError, match="explaining head is untrained"):
        Explainer.of(load_checkpoint(zero.checkpoint, CPU), CPU)
    with pytest.raises(InvalidInputError, match=r"no explaining head.*coc_vla\.train"):
        Explainer.of(load_checkpoint(policy.checkpoint, CPU), CPU)


def test_the_text_loss_reaches_the_trunk_and_draws_no_random_number(config, trained, tmp_path):
    # With a vanishing weight the text changes nothing but through random numbers, if it drew any.
    config = changed(config, num_epochs=3, dropout=0.1, coc_loss_weight=1e-30)
    vanishing = weights(run(config).checkpoint)
    assert_same_weights(vanishing, weights(alone(config, tmp_path).checkpoint))
    assert not torch.equal(vanishing["fut_queries"], weights(trained.checkpoint)["fut_queries"])


def test_a_resumed_run_ends_bit_identical(config, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.checkpoint.parent, folder)
    (folder / "model_C_epoch2.pt").unlink()
    torch.manual_seed(999)
    config = changed(config, log_dir=folder, dropout=0.1, num_epochs=3, resume=True)
    assert_same_run(trained, run(config))
    logs = [(f / "metrics.jsonl").read_text("utf-8") for f in (trained.checkpoint.parent, folder)]
    assert logs[0] == logs[1]
    assert "val_coc_loss" in logs[0]


def test_resuming_with_other_labels_or_another_weight_is_refused(config, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.checkpoint.parent, folder)
    other = write_labels(tmp_path / "other.jsonl", [label(e, UP) for e in range(30)])
    config = changed(config, log_dir=folder, dropout=0.1, num_epochs=3, resume=True)
    with pytest.raises(InvalidInputError, match=r"other\.jsonl is not the label file"):
        run(changed(config, labels_jsonl=other))
    with pytest.raises(InvalidInputError, match=r"--coc_loss_weight 0\.2 then, 0\.7 now"):
        run(changed(config, coc_loss_weight=0.7))


def test_a_checkpoint_explains_without_the_tokenizers_folder(config, cache, tmp_path):
    from transformers import AutoTokenizer

    from tests.fixtures.tiny_models import PACKAGED_FOLDER

    folder = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(PACKAGED_FOLDER).save_pretrained(folder)
    path = run(changed(config, text_tokenizer=str(folder))).checkpoint
    shutil.rmtree(folder)
    explainer = Explainer.of(load_checkpoint(path, CPU), CPU)
    opened = OfflineRun.open(OfflineConfig(path, cache.dataset_name, cache.cache_dir, device="cpu"))
    hidden = hidden_states(opened.policy, opened.tensors, opened.val_frames[:2])
    assert len(write_traces(explainer.decoder, explainer.tokenizer, hidden)) == 2
    assert explainer.tokenizer.decode(explainer.tokenizer.encode(UP))[1].what == "lift the cube"


def test_held_out_labels_teach_neither_tokenizer_nor_weights(config, cache, tmp_path):
    val = set(cache.manifest["split"]["val"])
    swapped = write_labels(
        tmp_path / "changed.jsonl",
        [label(e, DOWN if (e in val) == is_up(e) else UP) for e in range(SPEC.num_episodes)],
    )
    first = run(config)
    second = run(changed(config, labels_jsonl=swapped, log_dir=tmp_path / "other"))
    assert_same_run(first, second)
    assert first.metrics["val_coc_loss"] != second.metrics["val_coc_loss"]


def test_episodes_without_a_label_give_no_loss_and_are_counted(config, cache, tmp_path, capsys):
    train = cache.manifest["split"]["train"]
    records = [label(e, UP if e == train[0] else None) for e in train[:3]]
    path = write_labels(tmp_path / "few.jsonl", records)
    metrics = run(changed(config, labels_jsonl=path)).metrics
    printed = capsys.readouterr().out
    assert f"1 of {len(train)} training episodes" in printed
    assert "2 errors" in printed
    assert metrics["train_coc_loss"] > 0
    assert "val_coc_loss" not in metrics


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([label(0, UP), label(77, UP, "do task 1")], r"labels episode 77, which .* does not have"),
        (
            [label(0, UP, "fold the towel")],
            r"instruction 'fold the towel', but the cache says 'do task 0'",
        ),
        ([label(0, None)], r"no label of a training episode"),
        (None, "coc_generation"),
    ],
)
def test_labels_that_do_not_fit_are_refused(config, tmp_path, records, told):
    path = tmp_path / "bad.jsonl"
    if records is not None:
        write_labels(path, records)
    with pytest.raises((InvalidInputError, MissingFileError), match=told):
        run(changed(config, labels_jsonl=path))
    assert [path.name for path in config.log_dir.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_text_tokens": 8}, "--max_text_tokens 8, the longest has"),
        ({"text_context": "lang", "use_language": False}, "--text_context lang.*--use_language"),
        ({"text_heads": 3}, "--text_width 32 must be a multiple of --text_heads 3"),
        ({"coc_loss_weight": -1.0}, "--coc_loss_weight must be at least 0"),
    ],
)
def test_flags_that_do_not_fit_are_refused(config, changes, told):
    with pytest.raises(InvalidInputError, match=told):
        run(changed(config, **changes))


def test_through_the_command_line(config):
    flags = {"d_model": 32, "n_layers": 1, "text_width": 32, "device": "cpu", "num_epochs": 1}
    for name in ("dataset_name", "cache_dir", "log_dir", "labels_jsonl", "use_language"):
        flags[name] = getattr(config, name)
    command = [sys.executable, "-m", "coc_vla.train", *flag_arguments(flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "coc head:" in done.stdout
    assert (config.log_dir / "model_C_epoch0.pt").exists()


def test_a_policy_of_several_views_explains_itself(labels, tmp_path):
    spec = replace(SPEC, num_views=2, grid_size=2, cell_dim=5)
    views = write_coc_cache(tmp_path / "cache", spec)
    config = coc_train_config(views, labels, tmp_path / "logs", num_epochs=1)
    checkpoint = run(config).checkpoint
    where = {"dataset_name": views.dataset_name, "cache_dir": views.cache_dir, "device": "cpu"}
    opened = OfflineRun.open(OfflineConfig(checkpoint=checkpoint, **where))
    assert opened.tensors.observation == views.observation_shape
    assert opened.policy.config.frame.observation.num_vectors == 8
    told = EvalCocConfig(checkpoint=checkpoint, labels_jsonl=labels, **where)
    assert evaluate(told).run["data"]["observation"]["image_keys"] == views.image_keys
