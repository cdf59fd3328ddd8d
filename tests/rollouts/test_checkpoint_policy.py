import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.rollouts.checkpoint_policy import CheckpointPolicy
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.loop import Query, RolloutPolicy
from benchmarks.rollouts.suite_fit import PolicyInputs
from benchmarks.suite import EpisodeSpec, Observation, Suite
from tests.fixtures.instruction import NAME, build_home
from tests.fixtures.lerobot import TASKS
from tests.fixtures.policy import save_sealed, tiny_train_config
from tests.fixtures.tiny_models import save_text_model
from world_modality.acting.episode_memory import is_observed
from world_modality.cache.contract import Cache, sha256_of_file
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.encode.text_encoder import TextEncoder
from world_modality.policy.checkpoint import load_checkpoint, save_checkpoint
from world_modality.precompute_instruction_embeddings import InstructionConfig
from world_modality.precompute_instruction_embeddings import run as embed_instructions
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError, MissingKeyError, UserError
from world_modality.training.single import run as train

CPU = torch.device("cpu")
CHUNK = 4
# What is predicted besides, and that the actions attend to it, changes nothing in closed loop.
AHEAD = {"world_target": ("token", "embedding"), "future_to_action": True}
PAST = {"context_stride": 4, "world_history": 2, "world_history_stride": 3}
RENDERING = {"image_size": 48, "shadows": False, "gl_backend": "egl"}


@dataclasses.dataclass(frozen=True)
class DrawnSuite:
    """The suite whose frames `make_dataset` draws."""

    rendering: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(RENDERING))
    action_dim: int = 2
    image_keys: tuple[str, ...] = ("observation.image",)
    state_keys: tuple[str, ...] = ("observation.state", "observation.environment_state")
    name: str = "drawn"
    fps: int = 10

    def record(self) -> dict[str, Any]:
        return {"versions": {}, "gl_backend": "egl", "rendering": self.rendering}

    def observing(self, image_keys: Sequence[str]) -> "DrawnSuite":
        return dataclasses.replace(self, image_keys=tuple(image_keys))

    def open(self, task: str) -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Home:
    """A dataset, its cache, and policies trained on it."""

    cache: Cache
    observations: list[Observation]
    reads_all: Path
    reads_least: Path
    reads_past: Path
    attends_ahead: Path

    def spec(self, episode: int) -> EpisodeSpec:
        return EpisodeSpec(f"task-{episode % 3}", TASKS[episode % 3], episode, 0, 0, 50)

    def first_frame(self, episode: int) -> int:
        return int(np.flatnonzero(self.cache.load("episode_index") == episode)[0])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    build_home(folder)
    text_model = str(folder / "distilbert-base-uncased")
    embed_instructions(
        InstructionConfig(NAME, cache_dir=folder / "cache", text_model_name=text_model)
    )
    cache = Cache(folder / "cache", NAME)
    source = open_dataset(NAME, dataset_root=folder / NAME)
    images = frames_at(source, "observation.image", np.arange(source.num_frames))
    states = cache.load("states")
    return Home(
        cache=cache,
        observations=[
            {"observation.image": image, "observation.state": np.array(state)}
            for image, state in zip(images, states, strict=True)
        ],
        reads_all=train(
            tiny_train_config(cache, folder / "logs_c", "C", use_language=True)
        ).checkpoint,
        reads_least=train(
            tiny_train_config(cache, folder / "logs_a", "A", context_frames=1)
        ).checkpoint,
        reads_past=train(tiny_train_config(cache, folder / "logs_past", "C", **PAST)).checkpoint,
        attends_ahead=train(
            tiny_train_config(cache, folder / "logs_ahead", "C", **AHEAD)
        ).checkpoint,
    )


def config(path: Path, **flags) -> RolloutConfig:
    return RolloutConfig(checkpoint=(path,), device="cpu", **flags)


def opened(path: Path, suite: Suite | None = None, **flags) -> CheckpointPolicy:
    return CheckpointPolicy.open(path, suite or DrawnSuite(), config(path, **flags))


def changed(path: Path, folder: Path, **changes) -> Path:
    """Write a copy of a checkpoint with other content."""
    copy = folder / path.name
    save_checkpoint(copy, dataclasses.replace(load_checkpoint(path, CPU), **changes))
    return copy


def with_dataset(path: Path, folder: Path, **entries) -> Path:
    """Write a copy of a checkpoint whose manifest says something else of its dataset."""
    manifest = load_checkpoint(path, CPU).manifest
    return changed(
        path, folder, manifest={**manifest, "dataset": {**manifest["dataset"], **entries}}
    )


class Playback:
    """Asks a policy about a recorded episode, frame after frame, as the rollout loop does."""

    def __init__(self, policy: RolloutPolicy, home: Home, episode: int, spec=None) -> None:
        self.policy, self.home = policy, home
        self.first = home.first_frame(episode)
        self.memory = policy.begin(spec or home.spec(episode))
        self.observed = 0

    def query(self, step: int) -> Query:
        numbers = [n for n in range(self.observed, step + 1) if is_observed(n, self.policy)]
        self.observed = step + 1
        frames = {n: self.home.observations[self.first + n] for n in numbers}
        return Query(self.memory, step, frames)


def played(
    policy: RolloutPolicy, home: Home, episode: int, until: int = 9, spec=None
) -> np.ndarray:
    """Return an episode's actions at frames 0…until-1, asked about alone."""
    playback = Playback(policy, home, episode, spec)
    steps = range(0, until, policy.n_action_steps)
    return np.concatenate([policy.act([playback.query(step)])[0] for step in steps])


def test_it_fulfils_the_contract_of_the_loop(home):
    policy = opened(home.reads_all)
    assert isinstance(policy, RolloutPolicy)
    actions = played(policy, home, 0, until=CHUNK)
    assert (actions.shape, actions.dtype) == ((CHUNK, 2), np.float32)
    assert policy.sha256 == sha256_of_file(home.reads_all)
    assert (policy.model_type, policy.label) == ("C", "logs_c/model_C_epoch1")


@pytest.mark.parametrize("arm", ["reads_all", "reads_least", "reads_past", "attends_ahead"])
@pytest.mark.parametrize("n_action_steps", [1, 3, 4])
def test_it_acts_as_offline_evaluation_predicts(home, arm, n_action_steps):
    path = getattr(home, arm)
    policy = opened(path, n_action_steps=n_action_steps)
    reference = load_checkpoint(path, CPU).build_policy(CPU)
    language = reference.config.reads_language
    tensors = FrameTensors.from_cache(home.cache, CPU, with_language=language)
    for episode in (1, 4):
        steps = np.arange(0, 9, n_action_steps)
        batch = tensors.gather(
            torch.from_numpy(home.first_frame(episode) + steps), reference.config.window
        )
        with torch.inference_mode():
            output = reference(
                batch.embeddings, batch.states, batch.world_tokens, batch.instructions
            )
            chunks = reference.action_norm.inverse(output.actions).numpy()
        expected = np.clip(chunks[:, :n_action_steps].reshape(-1, 2), -1, 1)
        # The embedding pass computes 64 frames at a time, which moves some by one float16 step.
        np.testing.assert_allclose(played(policy, home, episode), expected, atol=2e-4)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(
    "flags", [{}, {"temporal_ensemble_coeff": 0.1}, {"corrupt_world": "random"}]
)
def test_other_episodes_of_the_call_change_no_bit(home, group, flags):
    policy = opened(home.reads_all, policy_batch_size=group, **flags)
    alone = {episode: played(policy, home, episode) for episode in range(6)}
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 0], [4, 1, 5, 0, 3]):
        playbacks = [Playback(policy, home, episode) for episode in order]
        answers = [
            policy.act([playback.query(step) for playback in playbacks])
            for step in range(0, 9, policy.n_action_steps)
        ]
        for position, episode in enumerate(order):
            together = np.concatenate([answer[position] for answer in answers])
            assert together.tobytes() == alone[episode].tobytes()


def test_episodes_at_different_steps_can_be_asked_about_together(home):
    policy = opened(home.reads_all, n_action_steps=2, policy_batch_size=4)
    ahead, behind = Playback(policy, home, 0), Playback(policy, home, 3)
    mixed: dict[int, list[np.ndarray]] = {0: [policy.act([ahead.query(0)])[0]], 3: []}
    for step in range(0, 8, 2):
        one, other = policy.act([behind.query(step), ahead.query(step + 2)])
        mixed[3].append(one)
        mixed[0].append(other)
    assert np.concatenate(mixed[0]).tobytes() == played(policy, home, 0, until=10).tobytes()
    assert np.concatenate(mixed[3]).tobytes() == played(policy, home, 3, until=8).tobytes()


def test_only_frames_of_the_context_and_stale_ones_are_asked_for(home):
    assert opened(home.reads_all).observed_lags == (0, 1)
    assert opened(home.reads_all, corrupt_world="stale:7").observed_lags == (0, 1, 7)
    assert opened(home.reads_least).observed_lags == (0,)
    assert opened(home.reads_past).observed_lags == (0, 3, 4, 6)
    assert opened(home.reads_past, corrupt_world="stale:7").observed_lags == (0, 4, 7, 10, 13)


@pytest.mark.parametrize("n_action_steps", [1, 3])
def test_a_history_of_tokens_is_that_of_the_recorded_rows_and_is_all_that_is_kept(
    home, n_action_steps
):
    policy = opened(home.reads_past, n_action_steps=n_action_steps)
    tensors = FrameTensors.from_cache(home.cache, CPU)
    window = policy.checkpoint.policy_config.window
    playback = Playback(policy, home, 1)
    for step in range(0, 12, n_action_steps):
        query = playback.query(step)
        policy._observe([query])
        read = tensors.tokens_read(torch.tensor([playback.first + step]), window)
        assert playback.memory.world_tokens(step).tolist() == read[0].tolist()
        policy.act([query])
    assert len(set(home.cache.load("world_tokens")[playback.first :][:12].tolist())) > 3
    assert min(playback.memory.tokens) == 12 - 6
    assert min(playback.memory.frames) >= 12 - 4


def test_a_memory_does_not_grow_with_the_episode(home):
    policy = opened(home.reads_all, temporal_ensemble_coeff=0.1, corrupt_world="stale:3")
    playback = Playback(policy, home, 2)
    for step in range(12):
        policy.act([playback.query(step)])
    assert len(playback.memory.frames) <= 4
    assert len(playback.memory.chunks) < CHUNK


def test_a_stale_token_changes_actions_after_the_start_and_a_random_one_follows_the_seed(home):
    clean, stale, drawn = (
        opened(home.reads_all, n_action_steps=1, corrupt_world=corruption)
        for corruption in ("none", "stale:6", "random")
    )
    own, late = played(clean, home, 2, until=12), played(stale, home, 2, until=12)
    np.testing.assert_array_equal(own[0], late[0])
    assert not np.array_equal(own, late)
    first = played(drawn, home, 2)
    np.testing.assert_array_equal(first, played(drawn, home, 2))
    spec = dataclasses.replace(home.spec(2), seed=1)
    assert not np.array_equal(first, played(drawn, home, 2, spec=spec))


def test_an_arm_that_reads_no_token_runs_clean_and_says_so(home, capsys):
    policy = opened(home.reads_least, corrupt_world="random")
    assert "changes nothing for arm A" in capsys.readouterr().out
    assert policy.record()["corrupt_world"] == "none"
    clean = opened(home.reads_least)
    np.testing.assert_array_equal(played(policy, home, 0), played(clean, home, 0))


def test_the_instruction_changes_what_is_done(home):
    policy = opened(home.reads_all)
    other = dataclasses.replace(home.spec(0), instruction=TASKS[1])
    assert not np.array_equal(played(policy, home, 0), played(policy, home, 0, spec=other))


def test_each_instruction_is_encoded_once_and_as_the_cache_holds_it(home, monkeypatch):
    policy = opened(home.reads_all)
    texts: list[str] = []
    encode = TextEncoder.encode

    def counting(self, given, batch_size=64):
        texts.extend(given)
        return encode(self, given, batch_size)

    monkeypatch.setattr(TextEncoder, "encode", counting)
    memories = [policy.begin(home.spec(episode)) for episode in range(6)]
    assert sorted(texts) == sorted(TASKS)
    cached = home.cache.load("instruction_embeddings")[home.first_frame(1)]
    assert memories[1].instruction.dtype == np.float16
    np.testing.assert_allclose(memories[1].instruction, cached, atol=1e-3)


def test_without_language_no_text_model_is_loaded(home):
    policy = opened(home.reads_least, text_model_name="/nowhere")
    assert policy.record()["text_model"] is None


def test_its_record_says_what_decides_its_actions(home):
    policy = opened(home.reads_all, n_action_steps=2, corrupt_world="stale:2")
    record = json.loads(json.dumps(policy.record()))
    expected = {
        "model_type": "C",
        "cache_fingerprint": home.cache.fingerprint(with_language=True),
        "encoder": "pixel-pca",
        "image_key": "observation.image",
        "state_key": "observation.state",
        "n_action_steps": 2,
        "temporal_ensemble_coeff": None,
        "corrupt_world": "stale:2",
        "policy_batch_size": 1,
    }
    assert {name: record[name] for name in expected} == expected
    assert record["text_model"].endswith("distilbert-base-uncased")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"n_action_steps": 5}, "--n_action_steps 5: the policy predicts 4"),
        ({"corrupt_world": "noise"}, "--corrupt_world noise is none of"),
        ({"camera_key": ("observation.imag",)}, "no camera 'observation.imag' in suite drawn"),
        ({"state_key": "observation.stat"}, "there are: observation.state, observation.envir"),
        ({"state_key": "observation.state+observation.stat"}, "'observation.stat' in suite drawn"),
    ],
)
def test_flags_that_do_not_fit_are_refused(home, flags, message):
    with pytest.raises(UserError, match=message):
        opened(home.reads_all, **flags)


def test_a_checkpoint_without_fingerprint_is_refused(home, tmp_path):
    path = changed(home.reads_all, tmp_path, cache_fingerprint="")
    with pytest.raises(InvalidInputError, match=r"model_C_epoch1\.pt has no fingerprint"):
        opened(path)
    content = torch.load(home.reads_all, weights_only=True)
    del content["cache_fingerprint"]
    save_sealed(content, path)
    with pytest.raises(InvalidInputError, match="lacks cache_fingerprint"):
        opened(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c[:, :-1], "codebook has D=5 but the encoder has D=6"),
        (lambda c: c[:-1], "codebook has V=11 but its policy was built for V=12"),
        (lambda c: c + 0.25, "may be of another encoder than pixel-pca"),
        (lambda c: None, "holds no codebook_centroids"),
    ],
)
def test_a_codebook_of_another_encoder_is_refused(home, tmp_path, spoil, message):
    arrays = dict(load_checkpoint(home.reads_all, CPU).cache_arrays)
    spoiled = spoil(arrays.pop("codebook_centroids"))
    if spoiled is not None:
        arrays["codebook_centroids"] = spoiled.contiguous()
    with pytest.raises(InvalidInputError, match=message):
        opened(changed(home.reads_all, tmp_path, cache_arrays=arrays))


def test_an_older_checkpoint_without_token_counts_rolls_out_uncorrupted_only(home, tmp_path):
    arrays = dict(load_checkpoint(home.reads_all, CPU).cache_arrays)
    del arrays["train_token_counts"]
    older = changed(home.reads_all, tmp_path, cache_arrays=arrays)
    np.testing.assert_array_equal(
        played(opened(older), home, 0), played(opened(home.reads_all), home, 0)
    )
    with pytest.raises(InvalidInputError, match=r"train again: python train_model_c\.py"):
        opened(older, corrupt_world="task")


def test_a_suite_with_other_actions_is_refused(home):
    with pytest.raises(InvalidInputError, match="actions of 2 dimensions, but drawn takes 7"):
        opened(home.reads_all, DrawnSuite(action_dim=7))


def test_a_state_of_another_dimension_is_refused_at_the_first_query(home):
    policy = opened(home.reads_all, state_key="observation.environment_state")
    image = home.observations[0]["observation.image"]
    frame = {"observation.image": image, "observation.environment_state": np.zeros(3, np.float32)}
    query = Query(policy.begin(home.spec(0)), 0, {0: frame})
    with pytest.raises(
        InvalidInputError, match=r"4 state dimensions.*environment_state has shape \[3\]"
    ):
        policy.act([query])


def test_another_rendering_is_refused_by_setting_and_another_gl_backend_noted(
    home, tmp_path, capsys
):
    path = with_dataset(home.reads_all, tmp_path, recording={"rendering": RENDERING})
    with pytest.raises(InvalidInputError) as refused:
        opened(path, DrawnSuite({"image_size": 64, "shadows": True, "gl_backend": "egl"}))
    assert "image_size was 48 in the recording and is 64 here" in str(refused.value)
    assert "shadows was false in the recording and is true here" in str(refused.value)
    assert opened(path).notes == ()
    policy = opened(path, DrawnSuite({**RENDERING, "gl_backend": "osmesa"}))
    assert 'gl_backend was "egl" in the recording and is "osmesa" here' in capsys.readouterr().out
    assert len(policy.notes) == 1


def test_another_text_model_is_refused(home, tmp_path):
    other = save_text_model(tmp_path / "other", seed=1)
    with pytest.raises(InvalidInputError, match="weights_sha256"):
        opened(home.reads_all, text_model_name=str(other))


def test_a_blank_instruction_is_refused(home):
    policy = opened(home.reads_all)
    with pytest.raises(InvalidInputError, match="text 0 to be encoded"):
        policy.begin(dataclasses.replace(home.spec(0), instruction=" "))


def test_a_task_without_training_episodes_cannot_be_drawn_from(home):
    policy = opened(home.reads_all, corrupt_world="task")
    unknown = dataclasses.replace(home.spec(0), task="fly", instruction="fly away")
    with pytest.raises(MissingKeyError, match="'fly' in the checkpoint's training episodes"):
        policy.begin(unknown)


def test_joined_states_stand_one_behind_the_other():
    inputs = PolicyInputs(("camera",), ("camera",), "hand+object", state_dim=3)
    seen = {"object": np.float32([3]), "hand": np.float32([1, 2]), "camera": np.zeros((2, 2, 3))}
    np.testing.assert_array_equal(inputs.state(seen), np.float32([1, 2, 3]))
