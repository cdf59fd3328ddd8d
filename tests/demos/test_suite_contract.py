"""What every suite promises to the recorder and to rollouts; a new one is a row of `SUITES`."""

import json
import pickle

import numpy as np
import pytest

from benchmarks.libero.environment import LiberoRendering
from benchmarks.libero.simulator import LiberoSuite
from benchmarks.metaworld.cameras import MetaworldCamera, MetaworldRendering
from benchmarks.metaworld.simulator import MetaworldSuite
from benchmarks.rendering import gl_backend
from benchmarks.suite import DemoSimulator, Suite
from world_modality.system.errors import InvalidInputError, MissingKeyError

GL = gl_backend()
SUITES = {
    "reach-v3": MetaworldSuite(
        MetaworldRendering(
            image_size=64,
            gl_backend=GL,
            further_cameras=(MetaworldCamera.called("gripperPOV"),),
        )
    ),
    "pick_up_the_milk_and_place_it_in_the_basket": LiberoSuite(
        "libero_object", LiberoRendering(image_size=64, gl_backend=GL)
    ),
}
"""By the task that is played."""


@pytest.fixture(scope="module", params=SUITES)
def opened(request):
    suite = SUITES[request.param]
    simulator = suite.open(request.param)
    yield suite, simulator
    simulator.close()


def actions(suite: Suite, count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, suite.action_dim)).astype(np.float32)


def play(suite: Suite, simulator: DemoSimulator, initial_state: int) -> list[np.ndarray]:
    """Return all that is seen of an episode whose first action is the expert's."""
    simulator.reset(initial_state)
    seen = [simulator.observe()]
    first = np.clip(simulator.expert()(), -1, 1).astype(np.float32)
    for action in [first, *actions(suite)]:
        simulator.step(action)
        seen.append(simulator.observe())
    return [value for observation in seen for _, value in sorted(observation.items())]


@pytest.mark.parametrize("suite", SUITES.values())
def test_a_suite_is_plain_data_for_other_processes(suite):
    assert isinstance(suite, Suite)
    assert pickle.loads(pickle.dumps(suite)) == suite
    record = suite.record()
    assert set(record) == {"versions", "gl_backend", "rendering"}
    assert json.loads(json.dumps(record)) == record
    assert "mujoco" in record["versions"]


@pytest.mark.parametrize("suite", SUITES.values())
def test_a_suite_with_fewer_cameras_is_the_same_suite(suite):
    one = suite.observing(suite.image_keys[-1:])
    assert one.image_keys == suite.image_keys[-1:]
    assert (one.name, one.record()) == (suite.name, suite.record())
    assert one.observing(suite.image_keys) == suite


@pytest.mark.parametrize("kind", [MetaworldRendering, LiberoRendering])
def test_a_rendering_survives_its_record_and_an_unknown_setting_is_refused(kind):
    rendering = kind.lerobot()
    assert kind.from_record(rendering.record()) == rendering != kind()
    with pytest.raises(InvalidInputError, match="fog"):
        kind.from_record({**rendering.record(), "fog": True})


def test_an_observation_has_the_suites_cameras_and_vectors(opened):
    suite, simulator = opened
    assert isinstance(simulator, DemoSimulator)
    simulator.reset(1)
    observation = simulator.observe()
    assert set(observation) == {*suite.image_keys, *suite.state_keys}
    for key in suite.image_keys:
        assert (observation[key].shape, observation[key].dtype) == ((64, 64, 3), np.uint8)
    for key in suite.state_keys:
        assert (observation[key].ndim, observation[key].dtype) == (1, np.float32)


def test_what_is_seen_in_the_dark_is_the_observation_without_its_images(opened):
    suite, simulator = opened
    simulator.reset(1)
    for action in actions(suite, 2):
        simulator.step(action)
        vectors, observation = simulator.observe_vectors(), simulator.observe()
        assert set(vectors) == set(suite.state_keys)
        for key, value in vectors.items():
            np.testing.assert_array_equal(value, observation[key])


def test_the_same_initial_state_gives_the_same_episode_whatever_was_played_before(opened):
    suite, simulator = opened
    play(suite, simulator, 5)
    again = play(suite, simulator, 6)
    other = suite.open(simulator.task)
    fresh = play(suite, other, 6)
    other.close()
    for one, two in zip(again, fresh, strict=True):
        np.testing.assert_array_equal(one, two)


def test_actions_are_finite_numbers_and_clipped_to_the_unit_range(opened):
    suite, simulator = opened
    simulator.reset(0)
    whole = np.ones(suite.action_dim, np.float32)
    for wrong in (whole[1:], whole * np.float32(np.nan)):
        with pytest.raises(ValueError, match=f"{suite.action_dim} finite numbers"):
            simulator.step(wrong)
    states = []
    for size in (5, 1):
        simulator.reset(3)
        simulator.step(size * whole)
        states.append(simulator.observe()["observation.state"])
    np.testing.assert_array_equal(*states)


def test_an_unknown_task_names_the_nearest_first(opened):
    suite, simulator = opened
    with pytest.raises(MissingKeyError, match=f"there are: {simulator.task}"):
        suite.open(f"{simulator.task}x")
