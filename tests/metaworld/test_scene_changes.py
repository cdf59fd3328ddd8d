"""Cue and occlusion in the real MetaWorld: what is seen when, and that nothing else changes."""

import dataclasses

import numpy as np
import pytest

from benchmarks.demos.episode import DemoEpisode
from benchmarks.metaworld import collect_demos
from benchmarks.metaworld.cameras import IMAGE_KEY, MetaworldRendering
from benchmarks.metaworld.collect_demos import CollectDemosConfig
from benchmarks.metaworld.cue import (
    ANYWHERE_HIGH_M,
    ANYWHERE_LOW_M,
    SIDE_GOAL_M,
    SIDE_JITTER_M,
    TURNING_POINT_M,
    Cue,
)
from benchmarks.metaworld.cue_check import CueCheck
from benchmarks.metaworld.occlusion import Occlusion
from benchmarks.metaworld.scene_flags import SceneFlags, require_scene_of_recording
from benchmarks.metaworld.simulator import (
    ENVIRONMENT_STATE_KEY,
    MetaworldSimulator,
    MetaworldSuite,
    evaluation_episodes,
)
from benchmarks.metaworld.tasks import instructions
from benchmarks.rendering import gl_backend
from benchmarks.suite import DEMONSTRATION_STREAM, EVALUATION_STREAM, layout_seed
from world_modality.system.errors import InvalidInputError, UserError

PLAIN = MetaworldRendering(image_size=96, gl_backend=gl_backend())
NUM_FRAMES = 12
SIDE = Cue("side", 4)
LEFT, RIGHT = (next(seed for seed in range(20) if SIDE.label(seed) == side) for side in (0, 1))


def opened(*scene, task: str = "reach-v3", **changes) -> MetaworldSimulator:
    return MetaworldSimulator(task, dataclasses.replace(PLAIN, scene=scene, **changes))


def without_goal_mark() -> MetaworldSimulator:
    simulator = opened()
    simulator._env.model.site("goal").rgba[3] = 0
    return simulator


def played(simulator: MetaworldSimulator, seed: int, actions: np.ndarray) -> tuple[list, list]:
    """Return MetaWorld's observation and the image of every frame."""
    simulator.reset(seed)
    states, images = [], []
    for action in actions:
        states.append(simulator.raw_observation)
        images.append(simulator.render())
        simulator.step(action)
    return states, images


def random_actions(num_frames: int = NUM_FRAMES) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (num_frames, 4)).astype(np.float32)


def num_different(one: np.ndarray, other: np.ndarray) -> int:
    return int((np.abs(one.astype(int) - other).max(axis=-1) > 30).sum())


def test_nothing_collides_with_sphere_and_screen_and_physics_is_the_same_to_the_bit():
    # Straight through the sphere on the right, the screen from the first frame on in the way.
    screen = Occlusion(0, position=(0.1, 0.75, 0.2), size=(0.02, 0.4, 0.4))
    actions = np.tile(np.float32([1, 1, -0.3, 0]), (60, 1))
    plain, changed = opened(), opened(Cue("side", 60), screen)
    assert changed._env.model.ngeom == plain._env.model.ngeom
    reached = []
    for simulator in (plain, changed):
        simulator.reset(RIGHT)
        own = []
        for action in actions:
            simulator.step(action)
            # Hand, gripper and objects of this frame and the one before; the goal follows them.
            own.append(simulator.raw_observation[:36])
            assert not simulator.in_contact()
        simulator.close()
        reached.append(own)
    np.testing.assert_array_equal(*reached)
    assert reached[0][-1][0] > 0.2, "the hand has not gone through the screen"


@pytest.mark.parametrize("cue", [SIDE, Cue("anywhere", 4)], ids=["side", "anywhere"])
def test_the_cue_is_seen_in_its_frames_and_nothing_tells_the_goal_after_them(cue):
    actions = random_actions()
    shown, reference = opened(cue), without_goal_mark()
    for seed in (LEFT, RIGHT):
        _, images = played(shown, seed, actions)
        _, without = played(reference, seed, actions)
        for frame, (image, plain) in enumerate(zip(images, without, strict=True)):
            if frame < cue.frames:
                assert num_different(image, plain) > 0.01 * image.shape[0] ** 2
            else:
                np.testing.assert_array_equal(image, plain)
    shown.close()
    reference.close()


@pytest.mark.parametrize("camera", ["corner2", "topview", "corner3"])
def test_the_sides_look_different_in_each_camera_that_looks_at_the_table(camera):
    rendering = CollectDemosConfig(cue="side", camera=(camera,), image_size=96).images
    simulator = MetaworldSimulator("reach-v3", rendering)
    centres = []
    for seed in (LEFT, RIGHT):
        simulator.reset(seed)
        red, green, blue = np.moveaxis(simulator.render().astype(int), -1, 0)
        sphere = (green > 80) & (red < green / 2) & (blue < green / 2)
        assert sphere.mean() > 0.008
        centres.append(np.argwhere(sphere).mean(axis=0))
    simulator.close()
    assert np.linalg.norm(centres[0] - centres[1]) > 15


def test_the_side_is_a_fair_coin_of_the_layouts_seed():
    for stream in (DEMONSTRATION_STREAM, EVALUATION_STREAM):
        seeds = [layout_seed(0, stream, "reach-v3", episode) for episode in range(400)]
        labels = [SIDE.label(seed) for seed in seeds]
        assert 0.45 < np.mean(labels) < 0.55
        for seed, label in zip(seeds[:20], labels, strict=False):
            goal = SIDE.goal(seed)
            np.testing.assert_array_equal(goal, Cue("side", 9).goal(seed))
            middle = np.array(SIDE_GOAL_M) * (1 if label else -1, 1, 1)
            assert (np.abs(goal - middle) <= SIDE_JITTER_M).all()
    assert len({SIDE.goal(seed)[1] for seed in seeds}) == len(seeds)


def test_an_evaluation_has_both_sides_equally_often_in_layouts_of_its_own():
    arguments = ({"reach-v3": "reach"}, 40, 0, 100)
    plain, cued = (
        [one.initial_state for one in evaluation_episodes(*arguments, scene)]
        for scene in ((), (SIDE,))
    )
    assert [SIDE.label(state) for state in cued] == [0, 1] * 20
    assert len(set(cued)) == 40
    kept = sum(first == second for first, second in zip(plain, cued, strict=True))
    assert 10 <= kept < 40, "a layout that has the side already stays"
    demonstrations = {layout_seed(0, DEMONSTRATION_STREAM, "reach-v3", i) for i in range(1000)}
    assert demonstrations.isdisjoint(cued)


def test_goals_anywhere_fill_the_range_of_the_task():
    cue = Cue("anywhere")
    seeds = [layout_seed(0, 0, "reach-v3", episode) for episode in range(400)]
    goals = np.stack([cue.goal(seed) for seed in seeds])
    assert (goals >= ANYWHERE_LOW_M).all()
    assert (goals <= ANYWHERE_HIGH_M).all()
    counts = np.bincount([cue.label(seed) for seed in seeds], minlength=8)
    assert len(counts) == 8
    assert counts.min() > 25


@pytest.mark.parametrize("goals", ["side", "anywhere"])
def test_the_demonstrator_reaches_the_wanted_goal_which_the_privileged_state_tells(goals):
    cue = Cue(goals, 4)
    simulator = opened(cue, image_size=16)
    for seed in range(8):
        simulator.reset(seed)
        told = simulator.observe()[ENVIRONMENT_STATE_KEY][-3:]
        np.testing.assert_allclose(told, cue.goal(seed), atol=1e-6)
        expert = simulator.expert()
        assert any(simulator.step(np.float32(np.clip(expert(), -1, 1))) for _ in range(80))
        distance = np.linalg.norm(simulator._env.tcp_center - cue.goal(seed))
        assert distance < 0.06
    simulator.close()


def test_the_goal_of_the_other_side_is_no_success():
    simulator = opened(SIDE, image_size=16)
    other_goals_expert = SIDE.expert(lambda: simulator.raw_observation, LEFT)
    simulator.reset(RIGHT)
    for _ in range(100):
        assert not simulator.step(np.float32(np.clip(other_goals_expert(), -1, 1)))
    assert simulator._env.tcp_center[0] < -0.1
    simulator.close()


@pytest.mark.parametrize("push", [0.0, 0.5], ids=["noise", "pushed ahead"])
@pytest.mark.parametrize("cue_frames", [1, 8, 30])
def test_the_way_is_common_for_longer_than_the_cue_and_two_chunks_and_parts_after_it(
    cue_frames, push
):
    cue = Cue("side", cue_frames)
    assert cue.common_frames == cue_frames + 16
    simulator = opened(cue, image_size=16)
    noise = 0.3 * np.random.default_rng(1).standard_normal((cue.common_frames + 60, 4))
    noise[: cue.common_frames, 1] += push  # so that it is at the turning point too early
    ways = []
    for seed in (LEFT, RIGHT):
        simulator.reset(LEFT)  # the same layout; the demonstrator wants another goal
        expert = cue.expert(lambda: simulator.raw_observation, seed)
        way = []
        for disturbance in noise:
            intended = np.clip(expert(), -1, 1)
            way.append([*simulator.raw_observation[:4], *intended])
            simulator.step(np.clip(intended + disturbance, -1, 1).astype(np.float32))
        ways.append(np.array(way))
    simulator.close()
    left, right = ways
    np.testing.assert_array_equal(left[: cue.common_frames], right[: cue.common_frames])
    assert right[-1, 0] - left[-1, 0] > 0.2
    if not push:
        # It is neither at rest on the way, where a policy without memory would stay for ever, nor
        # past the turning point when it may turn.
        end = left[cue.common_frames - 1, 1]
        assert TURNING_POINT_M[1] - 0.07 < end < TURNING_POINT_M[1] + 0.02
        assert np.mean(np.diff(left[: cue.common_frames, 1])[-10:]) > 0.5 * 0.15 / cue.common_frames


@pytest.mark.parametrize("task", ["reach-v3", "push-v3"])
def test_the_screen_is_there_from_its_frame_on_and_hides_part_of_the_image(task):
    actions = random_actions()
    shown, reference = opened(Occlusion(5), task=task), opened(task=task)
    states, images = played(shown, 1, actions)
    before, without = played(reference, 1, actions)
    shown.close()
    reference.close()
    np.testing.assert_array_equal(states, before)
    for frame, (image, plain) in enumerate(zip(images, without, strict=True)):
        if frame < 5:
            np.testing.assert_array_equal(image, plain)
        else:
            assert 0.04 < num_different(image, plain) / image.shape[0] ** 2 < 0.4


def test_the_screen_stands_where_a_flag_says():
    def seen(**flags) -> np.ndarray:
        rendering = CollectDemosConfig(occlusion_from=0, image_size=96, **flags).images
        simulator = MetaworldSimulator("reach-v3", rendering)
        simulator.reset(1)
        image = simulator.render()
        simulator.close()
        return image

    default = seen()
    same = seen(occlusion_position=(0.2, 0.5, 0.15), occlusion_size=(0.3, 0.02, 0.3))
    np.testing.assert_array_equal(default, same)
    assert num_different(default, seen(occlusion_position=(0.3, 0.5, 0.15))) > 50
    assert num_different(default, seen(occlusion_size=(0.1, 0.02, 0.1))) > 50


def test_a_layout_and_actions_give_the_same_frames_whatever_was_played_before():
    actions = random_actions()
    simulator = opened(SIDE, Occlusion(6))
    first = played(simulator, LEFT, actions)
    played(simulator, RIGHT, actions[:3])
    again = played(simulator, LEFT, actions)
    simulator.close()
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


def test_without_the_flags_the_record_is_the_same_as_ever_and_with_them_it_gives_them_back():
    assert CollectDemosConfig().images.record() == MetaworldRendering().record()
    assert not {"scene", "cue", "occlusion"} & set(MetaworldRendering().record())
    assert not {name for name in CollectDemosConfig().recipe_flags() if "cue" in name}
    config = CollectDemosConfig(cue="side", cue_frames=5, occlusion_from=3)
    record = config.images.record()
    assert record["cue"] == {"goals": "side", "frames": 5}
    assert record["occlusion"] == {
        "from_frame": 3,
        "position": [0.2, 0.5, 0.15],
        "size": [0.3, 0.02, 0.3],
    }
    assert MetaworldRendering.from_record(record) == config.images
    assert MetaworldSuite(config.images).record()["rendering"] == record
    with pytest.raises(InvalidInputError, match="a cue has the settings"):
        MetaworldRendering.from_record({**record, "cue": {"goals": "side"}})


def test_the_evaluator_takes_what_the_recording_has_and_flags_change_part_of_it():
    recorded = (Cue("side", 5), Occlusion(3, size=(0.1, 0.1, 0.1)))
    assert SceneFlags().scene() == ()
    assert SceneFlags().scene(recorded) == recorded
    assert SceneFlags(cue="side").scene(recorded) == recorded
    assert SceneFlags(cue="none").scene(recorded) == recorded[1:]
    assert SceneFlags(cue="anywhere").scene(recorded)[0] == Cue("anywhere", 5)
    moved = SceneFlags(occlusion_position=(0.0, 0.0, 0.0)).scene(recorded)[1]
    assert moved == Occlusion(3, (0.0, 0.0, 0.0), (0.1, 0.1, 0.1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"cue_frames": 4}, "--cue_frames 4 shows nothing without a cue; add --cue side"),
        ({"cue": "none", "cue_frames": 4}, "shows nothing without a cue"),
        ({"cue": "side", "cue_frames": 0}, "--cue_frames must be at least 1"),
        ({"occlusion_from": -1}, "--occlusion_from must be at least 0"),
        ({"occlusion_position": (0.0, 0.0, 0.0)}, "--occlusion_position places no screen"),
        ({"occlusion_from": 0, "occlusion_size": (0.1, 0.0, 0.1)}, "three above 0"),
        ({"occlusion_from": 0, "occlusion_position": (0.1, np.nan, 0.1)}, "three numbers"),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags, message):
    with pytest.raises(InvalidInputError, match=message):
        _ = CollectDemosConfig(**flags).images


def test_a_cue_is_refused_for_other_tasks_before_anything_is_recorded(tmp_path):
    config = CollectDemosConfig(cue="side", dataset_root=tmp_path / "cue")
    with pytest.raises(UserError, match=r"for reach-v3 alone, not for push-v3 .* --tasks reach-v3"):
        collect_demos.run(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"cue": "side", "cue_frames": 465}, "at least 501 steps, and they end after 500"),
        ({"cue": "side", "max_steps": 40}, "at least 44 steps, and they end after 40"),
        ({"occlusion_from": 500}, "at least 501 steps"),
    ],
)
def test_a_cue_or_a_screen_that_no_episode_is_long_enough_for_is_refused(tmp_path, flags, message):
    config = CollectDemosConfig(tasks=("reach-v3",), dataset_root=tmp_path / "cue", **flags)
    with pytest.raises(InvalidInputError, match=message):
        collect_demos.run(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recorded", "wanted", "found"),
    [
        ((), (SIDE,), r"a recording with no cue, and cue \{.*\} is asked for here"),
        ((SIDE,), (), r"a recording with cue \{.*\}, and no cue is asked for here"),
        ((SIDE,), (Cue("anywhere", 4),), '"anywhere"'),
        ((SIDE,), (Cue("side", 5),), '"frames": 5'),
        ((), (Occlusion(2),), "no occlusion, and occlusion"),
        ((Occlusion(2),), (Occlusion(3),), '"from_frame": 3'),
    ],
)
def test_another_scene_than_the_recordings_is_refused(recorded, wanted, found):
    with pytest.raises(InvalidInputError, match=found):
        require_scene_of_recording(recorded, wanted, "model_C.pt")
    require_scene_of_recording(recorded, recorded, "model_C.pt")


def test_the_instruction_does_not_say_the_side():
    words = set(instructions()["reach-v3"].lower().split())
    assert not words & {"left", "right", "side"}


def synthetic_check(is_seen: bool, leaks: bool, num_episodes: int = 60) -> CueCheck:
    """Return the check of episodes of noise, with a patch on the side of the goal."""
    cue, rng = Cue("side", 6), np.random.default_rng(0)
    check = CueCheck(cue)
    for seed in range(num_episodes):
        images = rng.integers(0, 80, (cue.common_frames + 10, 48, 48, 3), np.uint8)
        columns = slice(0, 16) if cue.label(seed) == 0 else slice(32, 48)
        if is_seen:
            images[: cue.frames, 10:30, columns, 1] = 255
        if leaks:
            images[cue.frames :, 10:30, columns, 1] = 255
        check.add(DemoEpisode("Reach", {IMAGE_KEY: images}, {}), seed)
    return check


def test_the_check_tells_a_cue_that_is_seen_from_one_that_is_lost_and_one_that_leaks():
    good = synthetic_check(is_seen=True, leaks=False)
    found = good.record()["cue"]
    assert found["num_episodes"] == 60
    assert found["cue_frames"]["label_bits"] > 0.9
    assert found["cue_frames"]["excess_bits"] > 0.8
    assert abs(found["later_frames"]["excess_bits"]) < 0.05
    assert "note:" not in good.text()
    lost = synthetic_check(is_seen=False, leaks=False)
    assert abs(lost.record()["cue"]["cue_frames"]["excess_bits"]) < 0.1
    assert "tells less than half" in lost.text()
    assert "frames after the cue tell the goal" in synthetic_check(True, leaks=True).text()
