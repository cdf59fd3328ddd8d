import numpy as np
import pytest

from benchmarks.libero.fixture_expert import FixtureExpert
from benchmarks.libero.fixture_expert import Phase as FixturePhase
from benchmarks.libero.grasps import SceneShapes, best_grasp, highest_between
from benchmarks.libero.scene import Scene
from benchmarks.libero.scripted_expert import Phase, PickAndPlaceExpert
from benchmarks.libero.simulator import LiberoSimulator
from benchmarks.libero.suites import suite_tasks
from world_modality.system.errors import InvalidInputError

NOTHING = np.zeros((0, 3))
ALONG_Y = np.array([0.0, 1.0, 0.0])
LIMIT = 280


def box(*, centre: tuple[float, float, float], size: tuple[float, float, float]) -> np.ndarray:
    """Return points every 5 mm through a box."""
    axes = [np.arange(-s / 2, s / 2 + 1e-9, 0.005) for s in size]
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3) + centre


def bowl(radius: float) -> np.ndarray:
    """Return points of an open cylinder's wall, 5 cm high."""
    angles, heights = np.meshgrid(np.linspace(0, 2 * np.pi, 200), np.linspace(0, 0.05, 11))
    wall = np.stack([radius * np.cos(angles), radius * np.sin(angles), heights], axis=-1)
    return wall.reshape(-1, 3)


def test_box_is_held_across_its_narrow_side_below_its_top():
    target = box(centre=(0.1, -0.2, 0.06), size=(0.1, 0.04, 0.12))
    grasp = best_grasp(target, NOTHING, np.array([1.0, 0.0, 0.0]))
    assert grasp is not None
    assert abs(grasp.closing_axis @ ALONG_Y) > 0.9
    np.testing.assert_allclose(grasp.position[:2], (0.1, -0.2), atol=0.015)
    assert 0.09 < grasp.position[2] < 0.12


def test_bowl_is_held_at_its_rim_with_one_finger_inside():
    grasp = best_grasp(bowl(0.055), NOTHING, ALONG_Y)
    assert grasp is not None
    assert abs(np.linalg.norm(grasp.position[:2]) - 0.055) < 0.01
    radial = grasp.position[:2] / np.linalg.norm(grasp.position[:2])
    assert abs(radial @ grasp.closing_axis[:2]) > 0.99


def test_hand_is_turned_where_a_finger_would_hit_a_neighbour():
    target = box(centre=(0, 0, 0.05), size=(0.04, 0.04, 0.1))
    neighbour = box(centre=(0, 0.055, 0.05), size=(0.03, 0.03, 0.1))
    alone = best_grasp(target, NOTHING, ALONG_Y)
    beside = best_grasp(target, neighbour, ALONG_Y)
    assert alone is not None
    assert beside is not None
    assert abs(alone.closing_axis @ ALONG_Y) > 0.99
    assert abs(beside.closing_axis @ ALONG_Y) < 0.75
    assert beside.cost < 10


def test_what_is_too_wide_for_the_fingers_is_not_held():
    assert best_grasp(box(centre=(0, 0, 0.1), size=(0.2, 0.2, 0.2)), NOTHING, ALONG_Y) is None


def test_way_is_as_high_as_the_highest_obstacle_near_it():
    points = np.array([[0.5, 0.05, 0.2], [0.5, 0.3, 0.9], [1.3, 0.0, 0.8]])
    start, end = np.zeros(3), np.array([1.0, 0.0, 0.0])
    assert highest_between(points, start, end, 0.1) == 0.2
    assert highest_between(points, start, end, 0.01) == -np.inf


def test_task_with_several_goals_is_refused():
    class TwoGoals(Scene):
        def goal(self) -> tuple[tuple[str, ...], ...]:
            return (("on", "moka_pot_1", "stove_1"), ("turnon", "stove_1"))

    with pytest.raises(InvalidInputError, match="on moka_pot_1 stove_1 and turnon stove_1"):
        PickAndPlaceExpert(TwoGoals(None))


def test_a_place_on_the_bare_table_is_refused():
    simulator = LiberoSimulator("libero_goal", suite_tasks("libero_goal")[5].name, None)
    simulator.reset(0)
    with pytest.raises(InvalidInputError, match="not on main_table_stove_front_region of the"):
        simulator.expert()
    simulator.close()


@pytest.mark.parametrize(
    ("number", "goal"),
    [(0, ("open", "wooden_cabinet_1_middle_region")), (7, ("turnon", "flat_stove_1"))],
)
def test_a_drawer_is_opened_and_a_stove_turned_on_in_spite_of_noise(number, goal):
    simulator = LiberoSimulator("libero_goal", suite_tasks("libero_goal")[number].name, None)
    assert simulator.goal() == (goal,)
    simulator.reset_sampled(0)
    closed = simulator.moving_part(goal[1])
    assert abs(closed.position) < 0.01
    assert closed.is_hinge == (goal[0] == "turnon")
    act = simulator.expert()
    noise = np.random.default_rng(0)
    touched = 0
    for _ in range(200):
        executed = np.clip(act() + 0.1 * noise.standard_normal(7), -1, 1)
        is_solved = simulator.step(executed.astype(np.float32))
        touched += simulator.in_contact()
        if is_solved:
            break
    else:
        pytest.fail("not solved in 200 steps")
    moved = simulator.moving_part(goal[1])
    assert abs(moved.position) > (0.5 if closed.is_hinge else 0.14)
    assert touched > 5
    assert 0.8 < simulator.object_height() < 1.2
    if not closed.is_hinge:
        shift = (moved.centres - closed.centres).mean(axis=0)
        np.testing.assert_allclose(shift, abs(moved.position) * closed.opening_axis, atol=5e-3)
    simulator.close()


def test_a_handle_that_slipped_out_of_the_hand_is_taken_again():
    simulator = LiberoSimulator("libero_goal", suite_tasks("libero_goal")[0].name, None)
    simulator.reset(1)
    expert = FixtureExpert(simulator, simulator.goal()[0][1])
    while abs(simulator.moving_part(simulator.goal()[0][1]).position) < 0.05:
        simulator.step(expert.act())
    for away in (0.0,) * 6 + (0.8,) * 8:
        simulator.step(np.array([0, away, 0, 0, 0, 0, -1], np.float32))
    phases = set()
    for _ in range(LIMIT):
        action = expert.act()
        phases.add(expert.phase)
        if simulator.step(action):
            break
    else:
        pytest.fail("the drawer is not open")
    assert FixturePhase.ENTER in phases
    simulator.close()


@pytest.fixture(scope="module")
def milk():
    """The task with the milk, physics alone."""
    simulator = LiberoSimulator("libero_object", suite_tasks("libero_object")[7].name, None)
    yield simulator
    simulator.close()


def play(simulator: LiberoSimulator, noise: float = 0.0) -> tuple[int | None, list[Phase]]:
    """Play an episode; return the number of steps to success (None: failed) and the phases."""
    expert = PickAndPlaceExpert(simulator)
    random = np.random.default_rng(0)
    phases: list[Phase] = []
    for step in range(LIMIT):
        action = expert.act()
        if not phases or phases[-1] is not expert.phase:
            phases.append(expert.phase)
        executed = np.clip(action + noise * random.standard_normal(7), -1, 1)
        if simulator.step(executed.astype(np.float32)):
            return step + 1, phases
    return None, phases


def test_shapes_enclose_the_object_and_follow_it(milk):
    milk.reset(0)
    shapes = SceneShapes(milk)
    points = shapes.points("milk_1")
    assert 0.1 < np.ptp(points[:, 2]) < 0.15
    assert abs(points[:, 2].min()) < 0.005
    position = milk.object_position("milk_1")
    expert = PickAndPlaceExpert(milk)
    while expert.phase is not Phase.CARRY:
        milk.step(expert.act())
    moved = milk.object_position("milk_1") - position
    assert moved[2] > 0.05
    np.testing.assert_allclose((shapes.points("milk_1") - points).mean(axis=0), moved, atol=0.03)


def test_milk_is_put_into_the_basket_in_one_go(milk):
    milk.reset(1)
    num_steps, phases = play(milk)
    assert num_steps is not None
    assert 60 < num_steps < 180
    assert phases[:4] == [Phase.APPROACH, Phase.CLOSE, Phase.LIFT, Phase.CARRY]


def test_expert_makes_good_for_noise_in_a_sampled_placement(milk):
    milk.reset_sampled(1)
    assert play(milk, noise=0.15)[0] is not None


def test_object_that_was_dropped_is_picked_up_again(milk):
    milk.reset(2)
    expert = PickAndPlaceExpert(milk)
    while expert.phase is not Phase.LIFT:
        milk.step(expert.act())
    for _ in range(4):
        milk.step(expert.act())
    for _ in range(8):
        milk.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))
    phases = set()
    for _ in range(LIMIT):
        action = expert.act()
        phases.add(expert.phase)
        if milk.step(action):
            break
    else:
        pytest.fail("the milk is not in the basket")
    assert Phase.APPROACH in phases


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "number"),
    [
        *((suite, number) for suite in ("libero_object", "libero_spatial") for number in range(10)),
        *(("libero_goal", number) for number in (0, 1, 2, 4, 6, 7, 8, 9)),
    ],
)
def test_every_task_is_solved_from_a_stored_state(suite, number):
    simulator = LiberoSimulator(suite, suite_tasks(suite)[number].name, None)
    simulator.reset(0)
    act = simulator.expert()
    assert any(simulator.step(act()) for _ in range(LIMIT))
    simulator.close()
