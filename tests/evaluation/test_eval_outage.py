import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, write_synthetic_cache
from tests.fixtures.policy import tiny_train_config
from world_modality.eval_outage import EvalOutageConfig, run
from world_modality.evaluation.dark_frames import dark_errors, tokens_read
from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.predictions import predict
from world_modality.system.errors import InvalidInputError
from world_modality.training.single import run as train

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
DARK = {"observation_dropout": 0.5, "num_epochs": 6, "future_offset": 4, "future_stride": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a cache whose next token is known from the last, and checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    cache = write_synthetic_cache(
        folder / "cache", SyntheticSpec(num_episodes=40, min_length=20, max_length=28, slip=0.1)
    )
    kinds = {
        "A": ("A", DARK),
        "B": ("B", DARK),
        "C": ("C", DARK),
        "history": ("C", DARK | {"world_history": 2, "world_history_stride": 3}),
        "dummy": ("C", DARK | {"token_control": "dummy"}),
        "short": ("C", DARK | {"future_offset": 2}),
        "always sees": ("C", {}),
    }
    paths = {
        name: train(tiny_train_config(cache, folder / name, arm, **flags)).checkpoint
        for name, (arm, flags) in kinds.items()
    }
    return cache, paths


def config(trained, kind, out_dir, **flags):
    cache, paths = trained
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "out_dir": out_dir}
    return EvalOutageConfig(checkpoint=paths[kind], device="cpu", **where, **flags)


def opened(trained, kind, tmp_path):
    return OfflineRun.open(config(trained, kind, tmp_path))


def plain_tokens(one, frame, num_dark, step, mode):
    """Play one outage forward, asking the policy itself; return what is read at its end."""
    policy, tensors, window = one.policy, one.tensors, one.policy.config.window
    start = int(tensors.episodes.starts[tensors.episodes.of_frame[frame]])
    last_seen, known = frame - num_dark, {}
    for number in range(start, last_seen + 1):
        known[number] = int(one.tokens[number])

    def read_at(number):
        asked = [max(number - lag, start) for lag in window.world_lags]
        return [known[max(k for k in known if k <= a)] for a in asked]

    for asked in range(last_seen, frame, step):
        if mode == "hold":
            break
        context = [max(asked - lag, start) for lag in window.context_lags]
        tokens = torch.tensor([read_at(asked)])
        output = policy(
            tensors.embeddings[context][None],
            tensors.states[context][None],
            tokens if window.world_history else tokens[:, 0],
            None,
            torch.tensor([[one > last_seen for one in context]]),
        )
        for k, token in enumerate(output.world_logits[0].argmax(-1).tolist(), start=1):
            known[asked + k * window.future_stride] = token
    return read_at(frame)


@pytest.mark.parametrize("kind", ["C", "history"])
@pytest.mark.parametrize("mode", ["own_prediction", "hold"])
def test_tokens_are_those_of_the_policy_asked_step_by_step(trained, tmp_path, kind, mode):
    one = opened(trained, kind, tmp_path)
    episodes = one.tensors.episodes
    place = one.val_frames - episodes.starts[episodes.of_frame[one.val_frames]]
    frames = one.val_frames[place >= 8][::5]
    found = tokens_read(one, frames, 8, 4, mode)
    with torch.inference_mode():
        expected = [plain_tokens(one, int(frame), 8, 4, mode) for frame in frames]
    assert np.array_equal(found.reshape(len(frames), -1), np.array(expected))
    true = tokens_read(one, frames, 8, 4, "true_token")
    assert np.array_equal(true.reshape(len(frames), -1)[:, -1], one.tokens[frames])


def test_errors_are_those_of_masked_observations_and_of_nothing_else(trained, tmp_path):
    one = opened(trained, "C", tmp_path)
    found = dark_errors(one, 4, 4, seed=0)
    episodes = one.tensors.episodes
    place = one.val_frames - episodes.starts[episodes.of_frame[one.val_frames]]
    frames = one.val_frames[place >= 4]
    assert found.num_frames == len(frames) < len(one.val_frames)

    def mse(tokens, num_dark):
        errors = predict(one.policy, one.tensors, frames, tokens, num_dark=num_dark)
        return errors.squared_error.sum() / errors.valid.sum()

    assert found.seen.value == pytest.approx(mse(None, 0))
    assert found.dark["true_token"].value == pytest.approx(mse(None, 4))
    assert found.dark["hold"].value == pytest.approx(mse(one.tokens[frames - 4], 4))
    gain = found.dark["true_token"].value - found.dark["hold"].value
    assert found.differences["true_token − hold"].value == pytest.approx(gain)
    embeddings = one.tensors.embeddings.clone()
    one.tensors.embeddings = torch.randn_like(embeddings.float()).half()
    again = dark_errors(one, 4, 4, seed=0)
    assert again.dark["true_token"] == found.dark["true_token"], "masked frames are not read"
    assert again.seen.value != found.seen.value


def test_where_the_next_token_is_known_the_prediction_beats_the_held_one(trained, tmp_path):
    result = run(config(trained, "C", tmp_path, num_dark_frames=(4, 8)))
    assert [one.num_dark for one in result.outages] == [4, 8]
    first = result.outages[0]
    assert first.tokens_right["true_token"].value == 1
    assert first.tokens_right["own_prediction"].value > first.tokens_right["hold"].value + 0.2
    assert first.dark["true_token"].value < first.dark["hold"].value


@pytest.mark.parametrize("kind", ["A", "B", "dummy"])
def test_an_arm_without_a_token_of_its_own_has_one_number(trained, tmp_path, kind, capsys):
    result = run(config(trained, kind, tmp_path))
    assert result.n_action_steps == 4
    assert [one.num_dark for one in result.outages] == [4, 8, 16]
    assert all(list(one.dark) == ["dark"] and not one.differences for one in result.outages)
    assert "has no world token of its own to go on with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("always sees", {}, "trained without --observation_dropout.*train again"),
        ("short", {}, r"--future_offset 2 .* with --n_action_steps 4 it would need that of 4"),
        ("C", {"num_dark_frames": (400,)}, "--num_dark_frames 400: the longest held-out episode"),
        ("C", {"num_dark_frames": (6,)}, "6 is no multiple of --n_action_steps 4"),
    ],
)
def test_what_means_nothing_is_refused(trained, tmp_path, kind, flags, message):
    with pytest.raises(InvalidInputError, match=message):
        run(config(trained, kind, tmp_path, **flags))


def test_impossible_flags_are_refused(trained, tmp_path):
    for flags in ({"n_action_steps": 0}, {"num_dark_frames": (0,)}):
        with pytest.raises(InvalidInputError, match="must be at least 1"):
            config(trained, "C", tmp_path, **flags)


def test_the_command_writes_its_report(trained, tmp_path):
    cache, paths = trained
    command = [sys.executable, "-m", "world_modality.eval_outage", "--checkpoint", paths["short"]]
    command += ["--dataset_name", cache.dataset_name, "--cache_dir", cache.cache_dir]
    command += ["--n_action_steps", "2", "--num_dark_frames", "2", "6", "--device", "cpu"]
    done = subprocess.run(map(str, command), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "own_prediction − hold" in done.stdout
    folder = paths["short"].parent / f"eval_outage_{paths['short'].stem}"
    report = json.loads((folder / "eval_outage.json").read_text("utf-8"))
    assert [one["num_dark"] for one in report["outages"]] == [2, 6]
    assert (folder / "eval_outage.png").stat().st_size > 1000
    assert (
        dataclasses.asdict(
            run(config(trained, "short", tmp_path, n_action_steps=2, num_dark_frames=(2, 6)))
        )["outages"]
        == report["outages"]
    )
