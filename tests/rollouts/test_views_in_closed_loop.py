"""A policy of two cameras, a grid of cells, components and a token for each cell, rolled out."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.rollouts.checkpoint_policy import CheckpointPolicy
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.loop import Query
from benchmarks.suite import EpisodeSpec, Observation, Suite
from tests.fixtures.lerobot import TASKS, make_dataset
from tests.fixtures.policy import tiny_train_config
from tests.fixtures.tiny_models import save_vision_model
from world_modality.acting.episode_memory import EncodedFrame, is_observed
from world_modality.acting.world_input import Tokens
from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.policy.checkpoint import load_checkpoint, save_checkpoint
from world_modality.precompute_world_tokens import PrecomputeConfig
from world_modality.precompute_world_tokens import run as precompute
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError, UserError
from world_modality.training.single import run as train

CPU = torch.device("cpu")
CAMERAS = ("observation.images.front", "observation.images.wrist")
NUM_CELLS = 8
EPISODE = 2


@dataclasses.dataclass(frozen=True)
class CameraSuite:
    """The suite whose frames `make_dataset` draws."""

    image_keys: tuple[str, ...] = (*CAMERAS, "observation.images.side")
    state_keys: tuple[str, ...] = ("observation.state",)
    action_dim: int = 2
    name: str = "drawn"
    fps: int = 10

    def observing(self, image_keys: Any) -> "CameraSuite":
        return dataclasses.replace(self, image_keys=tuple(image_keys))

    def record(self) -> dict[str, Any]:
        return {"versions": {}, "gl_backend": "egl", "rendering": {}}

    def open(self, task: str) -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A recording from two cameras, its cache, and a policy trained on it."""

    cache: Cache
    observations: list[Observation]
    checkpoint: Path

    @property
    def rows(self) -> np.ndarray:
        return np.flatnonzero(self.cache.load("episode_index") == EPISODE)

    def open(self, suite: Suite | None = None, **flags) -> CheckpointPolicy:
        config = RolloutConfig(checkpoint=(self.checkpoint,), device="cpu", **flags)
        return CheckpointPolicy.open(self.checkpoint, suite or CameraSuite(), config)

    def changed(self, folder: Path, **changes) -> "Recorded":
        """Return it with another checkpoint."""
        path = folder / self.checkpoint.name
        save_checkpoint(path, dataclasses.replace(load_checkpoint(self.checkpoint, CPU), **changes))
        return dataclasses.replace(self, checkpoint=path)


def recorded_in(folder: Path, **settings) -> Recorded:
    root = make_dataset(folder / "drawn", cameras=CAMERAS)
    model = str(save_vision_model(folder / "dinov2", "dinov2", image_size=42, patch_size=14))
    config = PrecomputeConfig(
        dataset_name="local/drawn",
        dataset_root=root,
        cache_dir=folder / "cache",
        batch_size=1,  # as the policy computes in closed loop: bit for bit the same
        device="cpu",
        **{"vision_model_name": model, "image_key": CAMERAS, "vq_num_tokens": 12, **settings},
    )
    cache = precompute(config).cache
    source = open_dataset("local/drawn", dataset_root=root, image_keys=CAMERAS)
    every = np.arange(source.num_frames)
    columns = {key: frames_at(source, key, every) for key in CAMERAS}
    columns["observation.state"] = np.array(cache.load("states"))
    observations = [
        {key: column[i] for key, column in columns.items()} for i in range(source.num_frames)
    ]
    run = train(tiny_train_config(cache, folder / "logs", "C", num_epochs=1))
    return Recorded(cache, observations, run.checkpoint)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Recorded:
    return recorded_in(
        tmp_path_factory.mktemp("recorded"),
        embedding_grid=2,
        embedding_components=6,
        world_slots="cell",
    )


def played(
    policy: CheckpointPolicy, home: Recorded
) -> tuple[np.ndarray, dict[int, EncodedFrame], dict[int, Tokens]]:
    """Return a recorded episode's actions, and all frames and tokens as the policy made them."""
    memory = policy.begin(EpisodeSpec("task", TASKS[EPISODE], EPISODE, 0, 0, 50))
    encoded: dict[int, EncodedFrame] = {}
    tokens: dict[int, Tokens] = {}
    actions = []
    observed = 0
    for step in range(0, len(home.rows), policy.n_action_steps):
        numbers = [n for n in range(observed, step + 1) if is_observed(n, policy)]
        frames = {n: home.observations[home.rows[n]] for n in numbers}
        observed = step + 1
        kept = dict(memory.frames), dict(memory.tokens)
        policy._observe([Query(memory, step, frames)])
        encoded |= memory.frames
        tokens |= memory.tokens
        memory.frames, memory.tokens = kept
        actions.append(policy.act([Query(memory, step, frames)])[0])
    return np.concatenate(actions), encoded, tokens


def test_embeddings_and_tokens_are_the_caches_rows(recorded):
    policy = recorded.open(n_action_steps=1)
    _, encoded, of_frame = played(policy, recorded)
    rows = recorded.rows
    assert list(encoded) == list(range(len(rows)))
    embeddings = np.stack([frame.embedding for frame in encoded.values()])
    assert (embeddings.shape, embeddings.dtype) == ((len(rows), NUM_CELLS, 6), np.float16)
    np.testing.assert_array_equal(embeddings, recorded.cache.load("view_embeddings")[rows])
    tokens = np.stack([of_frame[number] for number in encoded])
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, recorded.cache.load("world_tokens")[rows])
    assert len(np.unique(tokens)) > 4


def test_it_acts_as_offline_evaluation_predicts(recorded):
    policy = recorded.open(n_action_steps=1)
    reference = load_checkpoint(recorded.checkpoint, CPU).build_policy(CPU)
    tensors = FrameTensors.from_cache(recorded.cache, CPU)
    batch = tensors.gather(torch.from_numpy(recorded.rows), reference.config.window)
    assert batch.embeddings.shape[2:] == (NUM_CELLS, 6)
    with torch.inference_mode():
        output = reference(batch.embeddings, batch.states, batch.world_tokens)
        chunks = reference.action_norm.inverse(output.actions).numpy()
    expected = np.clip(chunks[:, 0], -1, 1)
    np.testing.assert_allclose(played(policy, recorded)[0], expected, atol=1e-5)


def test_one_slot_or_all_can_be_made_wrong(recorded):
    clean, one, stale = (
        played(recorded.open(n_action_steps=1, **flags), recorded)[0]
        for flags in (
            {},
            {"corrupt_world": "uniform", "corrupt_slot": 3},
            {"corrupt_world": "stale:4"},
        )
    )
    assert not np.array_equal(clean, one)
    np.testing.assert_array_equal(clean[0], stale[0])
    assert not np.array_equal(clean, stale)
    policy = recorded.open(corrupt_world="task_marginal", corrupt_slot=7)
    assert policy.record()["corrupt_world"] == "task_marginal@7"
    assert policy.record()["image_keys"] == list(CAMERAS)
    with pytest.raises(InvalidInputError, match="8: the policy has 8 world tokens a frame"):
        recorded.open(corrupt_world="uniform", corrupt_slot=8)
    with pytest.raises(InvalidInputError, match="replaces nothing without --corrupt_world"):
        recorded.open(corrupt_slot=0)


@pytest.mark.parametrize(
    ("suite", "flags", "message"),
    [
        (CameraSuite(CAMERAS[:1]), {}, "but suite drawn has no observation.images.wrist; there"),
        (CameraSuite(), {"camera_key": CAMERAS[:1]}, "name one camera for each view"),
        (CameraSuite(), {"camera_key": (CAMERAS[0],) * 2}, "in that order and each once"),
        (CameraSuite(), {"camera_key": (CAMERAS[0], "left")}, "suite drawn has no left; there are"),
    ],
)
def test_cameras_that_do_not_fit_are_refused(recorded, suite, flags, message):
    with pytest.raises(UserError, match=message):
        recorded.open(suite, **flags)


def test_a_policy_sees_the_cameras_that_are_named_in_their_order(recorded):
    turned = recorded.open(n_action_steps=1, camera_key=CAMERAS[::-1])
    _, encoded, _ = played(turned, recorded)
    views = recorded.cache.load("view_embeddings")[recorded.rows]
    swapped = np.concatenate([views[:, 4:], views[:, :4]], axis=1)
    found = np.stack([frame.embedding for frame in encoded.values()])
    np.testing.assert_array_equal(found, swapped)


def test_a_manifest_of_other_views_than_the_policys_is_refused(recorded, tmp_path):
    manifest = load_checkpoint(recorded.checkpoint, CPU).manifest
    observation = {**manifest["observation"], "grid_size": 1}
    codebook = {**manifest["codebook"], "num_slots": 2}
    other = {**manifest, "observation": observation, "codebook": codebook}
    with pytest.raises(
        InvalidInputError, match=r"built for 2 views of 2x2 .* describes 2 views of 1x1"
    ):
        recorded.changed(tmp_path, manifest=other).open()


def test_components_of_one_view_are_read_as_one_vector(tmp_path):
    own = recorded_in(tmp_path, image_key=CAMERAS[1:], embedding_components=5)
    _, encoded, of_frame = played(own.open(n_action_steps=1), own)
    found = np.stack([frame.embedding for frame in encoded.values()])
    np.testing.assert_array_equal(found, own.cache.load("view_embeddings")[own.rows][:, 0])
    tokens = [of_frame[number] for number in encoded]
    np.testing.assert_array_equal(tokens, own.cache.load("world_tokens")[own.rows])
