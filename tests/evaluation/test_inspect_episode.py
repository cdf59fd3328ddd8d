"""A recording of an episode, read back as rerun's viewer reads it."""

import dataclasses
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fixtures.policy import tiny_train_config
from tests.rollouts.test_views_in_closed_loop import CAMERAS, EPISODE, NUM_CELLS, recorded_in
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.inspect_episode import InspectEpisodeConfig, run
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.system.errors import InvalidInputError
from world_modality.training.single import run as train

CPU = torch.device("cpu")
FPS = 10
HORIZON = 2
rerun_dataframe = pytest.importorskip("rerun.dataframe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("inspected")


@pytest.fixture(scope="module")
def home(folder):
    cells = {"embedding_grid": 2, "embedding_components": 6, "world_slots": "cell"}
    return recorded_in(folder, **cells)


def flags(home, folder, checkpoint=None, **changes):
    return InspectEpisodeConfig(
        **{
            "checkpoint": checkpoint or home.checkpoint,
            "dataset_name": home.cache.dataset_name,
            "dataset_root": folder / "drawn",
            "cache_dir": home.cache.cache_dir,
            "episode": EPISODE,
            "horizon": HORIZON,
            "device": "cpu",
            **changes,
        }
    )


class Played:
    """The columns of a recording by entity."""

    def __init__(self, path):
        self.recording = rerun_dataframe.load_recording(str(path))
        columns = self.recording.schema().component_columns()
        self.entities = {column.entity_path.lstrip("/") for column in columns}

    def column(self, entity, component, index="frame"):
        view = self.recording.view(index=index, contents=f"/{entity}")
        table = view.select().read_all()
        name = next(n for n in table.column_names if n.endswith(component))
        rows = zip(table[index].to_pylist(), table[name].to_pylist(), strict=True)
        return {at: value[0] for at, value in rows if value is not None}

    def numbers(self, entity):
        found = self.column(entity, "Scalars:scalars")
        return np.array(list(found)), np.array(list(found.values()))


@pytest.fixture(scope="module")
def played(home, folder):
    return Played(run(flags(home, folder, out_dir=folder / "out")).path)


@pytest.fixture(scope="module")
def expected(home):
    """What the policy says of the episode's frames, asked without the stage."""
    policy = load_checkpoint(home.checkpoint, CPU).build_policy(CPU)
    tensors = FrameTensors.from_cache(home.cache, CPU)
    batch = tensors.gather(torch.from_numpy(home.rows), policy.config.window)
    with torch.inference_mode():
        output = policy(batch.embeddings, batch.states, batch.world_tokens)
        actions = policy.action_norm.inverse(output.actions)[:, 0].numpy()
        shares = output.world_logits[:, HORIZON - 1].softmax(-1).numpy()
    return actions, shares


def test_all_cameras_show_their_frames_at_their_times(home, played):
    for camera in CAMERAS:
        blobs = played.column(f"images/{camera}", "blob")
        images = [Image.open(io.BytesIO(bytes(blob))) for blob in blobs.values()]
        assert list(blobs) == list(range(len(home.rows)))
        shown = np.stack([np.asarray(image, dtype=np.int16) for image in images])
        recorded = np.stack([home.observations[row][camera] for row in home.rows])
        assert np.abs(shown - recorded).mean() < 6
    assert np.abs(shown - recorded[::-1]).mean() > 10
    times = played.column(f"images/{CAMERAS[0]}", "blob", index="time")
    seconds = [at.total_seconds() for at in times]
    np.testing.assert_allclose(seconds, np.arange(len(home.rows)) / FPS)


def test_tokens_and_actions_are_the_recorded_ones(home, played):
    tokens = home.cache.load("world_tokens")[home.rows]
    for slot in range(NUM_CELLS):
        frames, values = played.numbers(f"world/token/slot_{slot}")
        assert frames.tolist() == list(range(len(home.rows)))
        np.testing.assert_array_equal(values, tokens[:, slot])
    actions = home.cache.load("actions")[home.rows]
    for dim in range(actions.shape[1]):
        _, values = played.numbers(f"actions/x{dim}/recorded")
        np.testing.assert_allclose(values, actions[:, dim], rtol=1e-6)


def test_predictions_are_the_policys(home, played, expected):
    actions, shares = expected
    for dim in range(actions.shape[1]):
        np.testing.assert_allclose(
            played.numbers(f"actions/x{dim}/predicted")[1], actions[:, dim], atol=1e-5
        )
    tokens = home.cache.load("world_tokens")[home.rows]
    window = load_checkpoint(home.checkpoint, CPU).policy_config.window
    ahead = HORIZON * window.future_stride
    for slot in (0, NUM_CELLS - 1):
        own = shares[:, slot]
        top = played.numbers(f"prediction/token/top/slot_{slot}")[1].astype(int)
        probability = played.numbers(f"prediction/probability/top/slot_{slot}")[1]
        np.testing.assert_allclose(probability, own.max(-1), atol=1e-5)
        np.testing.assert_allclose(own[np.arange(len(own)), top], own.max(-1), atol=1e-5)
        frames, recorded = played.numbers(f"prediction/token/recorded/slot_{slot}")
        assert frames.tolist() == list(range(len(home.rows) - ahead)), "none past the end"
        np.testing.assert_array_equal(recorded, tokens[ahead:, slot])
        of_recorded = played.numbers(f"prediction/probability/recorded/slot_{slot}")[1]
        chosen = own[frames, recorded.astype(int)]
        np.testing.assert_allclose(of_recorded, chosen, atol=1e-5)


def test_attention_to_the_world_token_is_there_for_each_layer_and_each_token(home, played):
    config = load_checkpoint(home.checkpoint, CPU).policy_config
    layers = range(config.trunk.n_layers)
    shares = {
        kind: np.stack([played.numbers(f"attention/{kind}/layer_{n}")[1] for n in layers])
        for kind in ("obs", "world", "fut", "act")
    }
    np.testing.assert_allclose(sum(shares.values()), 1, atol=1e-5)
    assert (shares["world"] > 0).all()
    of_tokens = [
        played.numbers(f"attention/of_world_tokens/token_{number}")[1]
        for number in range(NUM_CELLS)
    ]
    np.testing.assert_allclose(sum(of_tokens), shares["world"][-1], atol=1e-5)


def test_the_recording_says_what_it_is_of(home, played):
    table = played.recording.view(index="frame", contents="/about").select_static().read_all()
    name = next(n for n in table.column_names if n.endswith("TextDocument:text"))
    (text,) = table[name][0].as_py()
    assert "Arm C" in text
    assert f"episode {EPISODE}" in text
    stride = load_checkpoint(home.checkpoint, CPU).policy_config.window.future_stride
    assert f"world token {HORIZON * stride} frames later" in text


def test_arm_a_has_actions_and_attention_alone_and_a_held_out_episode_is_the_default(
    home, folder, capsys
):
    config = tiny_train_config(home.cache, folder / "logs_a", "A", num_epochs=1)
    shown = run(flags(home, folder, train(config).checkpoint, episode=None, horizon=1))
    own = home.cache.manifest["split"]["val"][0]
    assert shown.trace.is_held_out
    assert shown.path == folder / "logs_a" / "inspect_episode_model_A_epoch0" / f"episode_{own}.rrd"
    assert f"rerun {shown.path}" in capsys.readouterr().out
    entities = Played(shown.path).entities
    assert {"actions/x0/predicted", "attention/obs/layer_0"} <= entities
    assert not any(name.startswith(("prediction", "attention/world")) for name in entities)


def test_a_control_arm_is_shown_with_the_token_that_it_reads(home, folder, tmp_path, expected):
    trained = load_checkpoint(home.checkpoint, CPU).train_config
    dummy = home.changed(tmp_path, train_config=dataclasses.replace(trained, token_control="dummy"))
    trace = run(flags(dummy, folder, out_dir=tmp_path / "out")).trace
    policy = load_checkpoint(home.checkpoint, CPU).build_policy(CPU)
    batch = FrameTensors.from_cache(home.cache, CPU).gather(
        torch.from_numpy(home.rows), policy.config.window
    )
    with torch.inference_mode():
        zeros = torch.zeros_like(batch.world_tokens)
        output = policy(batch.embeddings, batch.states, zeros)
    read = policy.action_norm.inverse(output.actions)[:, 0].numpy()
    np.testing.assert_allclose(trace.predicted_actions, read, atol=1e-5)
    assert np.abs(read - expected[0]).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"episode": 99}, r"--episode 99: local/drawn has 6 episodes, numbered from 0 to 5; held"),
        ({"horizon": 0}, r"--horizon 0: the policy predicts 3 tokens; give 1 to 3"),
        ({"horizon": 4}, r"--horizon 4: the policy predicts 3 tokens"),
    ],
)
def test_what_is_not_there_is_refused(home, folder, changes, refusal):
    with pytest.raises(InvalidInputError, match=refusal):
        run(flags(home, folder, **changes))


def test_without_rerun_the_message_says_what_to_install(home, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(InvalidInputError, match="pip install 'rerun-sdk"):
        run(flags(home, folder, out_dir=tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.rrd*"))
