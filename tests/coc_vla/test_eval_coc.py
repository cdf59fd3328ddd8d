import dataclasses
import json
import math

import pytest
import torch

from coc_vla.eval_coc import EvalCocConfig, run
from coc_vla.train import run as train
from tests.fixtures.coc import (
    SPEC,
    UP,
    all_labels,
    coc_train_config,
    label,
    write_coc_cache,
    write_labels,
)
from tests.fixtures.policy import save_sealed
from world_modality.eval_offline import EvalOfflineConfig
from world_modality.eval_offline import run as eval_offline
from world_modality.system.errors import InvalidInputError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return an evaluation of a two-head model and its instruction-only control."""
    folder = tmp_path_factory.mktemp("trained")
    cache = write_coc_cache(folder / "cache")
    labels = all_labels(folder / "labels.jsonl")
    paths = {
        context: train(
            coc_train_config(
                cache,
                labels,
                folder / context,
                text_context=context,
                num_epochs=20,
                learning_rate=5e-3,
                coc_loss_weight=1.0,
                coc_samples_per_batch=32,
                text_dropout=0.0,
                dropout=0.0,
            )
        ).checkpoint
        for context in ("trunk", "lang")
    }
    return EvalCocConfig(
        checkpoint=paths["trunk"],
        control=paths["lang"],
        dataset_name=cache.dataset_name,
        cache_dir=cache.cache_dir,
        labels_jsonl=labels,
        out_dir=folder / "report",
        device="cpu",
    )


@pytest.fixture(scope="module")
def report(trained):
    return run(trained)


def test_what_only_the_frames_show_is_explained_better_than_from_the_instruction(report):
    model, control = (report.conditions[name] for name in ("model", "instruction only"))
    assert model.perplexity.high < control.perplexity.low
    assert control.nats_minus_model.low > 0
    # Half of each task's episodes have either trace: the instruction cannot tell which.
    assert control.nats_per_trace > 0.8 * math.log(2)
    assert model.scores["all"].recall.value == 1
    assert control.recall_minus_model["all"].high < 0


def test_another_episodes_frames_make_the_explanation_worse(report):
    other = report.conditions["all input of another episode of the task"]
    assert other.nats_minus_model.low > 0
    assert other.changed > 0.3


def test_an_explanation_that_rests_on_the_states_does_not_fall_with_the_world_token(report):
    # The token says nothing about the trace here, whatever little the decoder makes of it.
    corrupted = report.conditions["world token: another frame's of the same task"]
    assert corrupted.scores["all"].recall.value > 0.9
    assert corrupted.perplexity.value < report.conditions["instruction only"].perplexity.value


def test_actions_and_world_tokens_are_those_of_eval_offline(trained, report, tmp_path):
    config = EvalOfflineConfig(
        checkpoint=trained.checkpoint,
        dataset_name=trained.dataset_name,
        cache_dir=trained.cache_dir,
        out_dir=tmp_path,
        device="cpu",
    )
    plain = eval_offline(config)
    assert plain.actions == report.actions
    assert plain.world == report.world


def test_the_report_is_written_as_json_markdown_and_picture(trained, report):
    written = json.loads((trained.out_dir / "eval_coc.json").read_text("utf-8"))
    assert written["truth"] == "labels"
    assert written["labels"]["num_explained"] == written["run"]["num_val_episodes"] == 9
    assert "written" not in written["conditions"]["model"]
    text = (trained.out_dir / "eval_coc.md").read_text("utf-8")
    assert "| instruction only |" in text
    assert "1. Close the gripper around the cube. a firm hold moves it along." in text
    assert (trained.out_dir / "eval_coc.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_report(trained, report, tmp_path):
    again = run(dataclasses.replace(trained, out_dir=tmp_path))
    assert again.conditions == report.conditions


def test_a_control_that_sees_more_or_reads_otherwise_is_refused(trained, tmp_path):
    with pytest.raises(InvalidInputError, match=r"reads more than the instruction.*text_context"):
        run(dataclasses.replace(trained, control=trained.checkpoint))
    kept = torch.load(trained.control, weights_only=True)
    kept["auxiliary_head"]["record"]["labels_sha256"] = "0" * 64
    save_sealed(kept, tmp_path / "model_C_epoch0.pt")
    with pytest.raises(InvalidInputError, match="trained with another labels"):
        run(dataclasses.replace(trained, control=tmp_path / "model_C_epoch0.pt"))


def test_labels_without_a_held_out_episode_are_refused(trained, tmp_path):
    path = write_labels(tmp_path / "none.jsonl", [label(e, None) for e in range(SPEC.num_episodes)])
    with pytest.raises(InvalidInputError, match="no label of a held-out episode"):
        run(dataclasses.replace(trained, labels_jsonl=path))
    other = write_labels(tmp_path / "other.jsonl", [label(0, UP, "sort the mail")])
    with pytest.raises(InvalidInputError, match="labels of another dataset"):
        run(dataclasses.replace(trained, labels_jsonl=other))
    with pytest.raises(InvalidInputError, match="--temperature must be above 0"):
        dataclasses.replace(trained, temperature=0.0)
