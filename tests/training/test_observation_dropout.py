import dataclasses

import numpy as np
import pytest
import torch

from tests.fixtures.policy import (
    assert_same_weights,
    synthetic_tensors,
    tiny_policy_config,
    tiny_train_config,
    weights,
)
from world_modality.arms import MODEL_TYPES
from world_modality.policy.checkpoint import load_checkpoint, save_checkpoint
from world_modality.policy.network import WorldPolicy
from world_modality.training.observation_dropout import ObservationDropout
from world_modality.training.single import run
from world_modality.training.trainer import Trainer

CPU = torch.device("cpu")


def test_a_share_of_the_windows_has_a_stretch_of_dark_frames_each_length_alike():
    dark = ObservationDropout(0.4, 4, seed=0).draw(200_000, step=3)
    assert dark.any(axis=1).mean() == pytest.approx(0.4, abs=0.02)
    lengths = dark.sum(axis=1)
    for length in (1, 2, 3, 4):
        assert (lengths == length).mean() == pytest.approx(0.1, abs=0.01)
        places = np.argmax(dark, axis=1)
        chosen = lengths == length
        last = 3 - np.argmax(dark[:, ::-1], axis=1)
        assert (last - places + 1 == lengths)[chosen].all(), "one frame behind the other"
        num_places = 5 - length
        expected = 0.5 + 0.5 / num_places if num_places > 1 else 1
        assert dark[chosen, -1].mean() == pytest.approx(expected, abs=0.02)
        assert len(set(places[chosen].tolist())) == num_places


def test_with_one_frame_of_context_the_newest_is_dark():
    dark = ObservationDropout(0.3, 1, seed=0).draw(20_000, step=0)
    assert dark.shape == (20_000, 1)
    assert dark.mean() == pytest.approx(0.3, abs=0.02)


def test_draws_depend_on_seed_and_step_alone():
    draws = [
        ObservationDropout(0.5, 2, seed).draw(64, step) for seed, step in ((0, 0), (0, 1), (1, 0))
    ]
    state = torch.get_rng_state()
    torch.rand(5)
    assert np.array_equal(draws[0], ObservationDropout(0.5, 2, 0).draw(64, 0))
    torch.set_rng_state(state)
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_every_arm_has_the_same_dark_windows_and_the_parts_of_a_batch_those_of_the_whole(tmp_path):
    tensors = synthetic_tensors(tmp_path)
    cache_frames = torch.arange(40)
    seen = {}
    for model_type in MODEL_TYPES:
        config = tiny_train_config_of(model_type, observation_dropout=0.5)
        trainer = Trainer(
            WorldPolicy(tiny_policy_config(model_type, observation_dropout=0.5)),
            tensors,
            np.arange(40),
            config,
        )
        batches = []
        update = trainer._update
        trainer._update = lambda frames, batch, update=update, batches=batches: (
            batches.append(batch) or update(frames, batch)
        )
        for _ in range(3):
            trainer.step(cache_frames)
        seen[model_type] = torch.stack([batch.is_dark for batch in batches])
    assert seen["A"].any()
    assert not seen["A"].all()
    assert all(torch.equal(dark, seen["A"]) for dark in seen.values())
    dropout = ObservationDropout(0.5, 2, 0)
    batch = tensors.gather(torch.arange(8, 13), tiny_policy_config("A").window)
    part = dropout.applied(batch, 40, 1, slice(8, 13))
    assert torch.equal(part.is_dark, seen["A"][1][8:13])


def tiny_train_config_of(model_type, **changes):
    from world_modality.policy.config import TrainConfig, from_flags

    flags = {"dataset_name": "x", "model_type": model_type, "context_frames": 2, "batch_size": 40}
    return from_flags(TrainConfig, {**flags, **changes})


def test_a_trained_run_is_another_one_and_starts_from_the_same_weights(cache, tmp_path):
    torch.manual_seed(0)
    plain = WorldPolicy(tiny_policy_config("C")).state_dict()
    torch.manual_seed(0)
    masked = WorldPolicy(tiny_policy_config("C", observation_dropout=0.3)).state_dict()
    assert masked.pop("dark_observation").abs().sum() == 0
    assert_same_weights(plain, masked)
    ends = [
        weights(run(tiny_train_config(cache, tmp_path / str(p), "C", **flags)).checkpoint)
        for p, flags in ((0, {}), (3, {"observation_dropout": 0.3}))
    ]
    assert ends[1].pop("dark_observation").abs().sum() > 0, "the vector is learned"
    assert not torch.equal(ends[0]["state_in.weight"], ends[1]["state_in.weight"])


def test_it_is_resumed_bit_identically_and_belongs_to_the_checkpoint(cache, tmp_path):
    config = tiny_train_config(cache, tmp_path / "whole", "B", observation_dropout=0.4)
    whole = run(config).checkpoint
    cut = dataclasses.replace(config, log_dir=tmp_path / "cut")
    run(cut).checkpoint.unlink()  # what is left is the first epoch's
    resumed = run(dataclasses.replace(cut, resume=True)).checkpoint
    assert_same_weights(weights(whole), weights(resumed))
    stored = load_checkpoint(resumed, CPU)
    assert stored.policy_config.trunk.observation_dropout == 0.4
    assert stored.train_flags["observation_dropout"] == 0.4


def test_checkpoints_of_before_the_flag_load_as_without_it(cache, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(
        run(tiny_train_config(cache, tmp_path / "run", "C")).checkpoint, CPU
    )
    from world_modality.policy import checkpoint as module

    flags_of = module.flags_of

    def older(config):
        return {k: v for k, v in flags_of(config).items() if k != "observation_dropout"}

    monkeypatch.setattr(module, "flags_of", older)
    save_checkpoint(tmp_path / "older.pt", checkpoint)
    monkeypatch.undo()
    loaded = load_checkpoint(tmp_path / "older.pt", CPU)
    assert loaded.policy_config == checkpoint.policy_config
    assert loaded.policy_config.trunk.observation_dropout == 0
