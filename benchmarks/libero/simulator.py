"""LIBERO behind one adapter, and the suites that open it.

Conventions are those of LeRobot's public LIBERO data: cameras `agentview` and `robot0_eye_in_hand`,
both images turned by 180 degrees against robosuite's (whose first row is the lowest), an 8-d state
and a 7-d action. With `LiberoRendering.lerobot()` images, states and outcomes are those of LIBERO's
`OffScreenRenderEnv`; what differs is what they cost:

- cameras are rendered when `observe` asks for them, not in every step;
- a reset keeps the compiled model (0.01 s instead of 2.4 s). LIBERO's own resets add the samplers
  of open and closed drawers once more each time, so that what they draw depends on how many went
  before; here an episode is a function of its initial state alone;
- by default images have no shadows, reflections or multisampling.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt32

from benchmarks.libero.environment import (
    LiberoRenderer,
    LiberoRendering,
    build_environment,
    draw_placement,
    numpy_random,
    put_fixtures_at_origin,
    simulator_versions,
    watch_samples,
)
from benchmarks.libero.scene import Scene, axis_angle
from benchmarks.libero.suites import (
    LiberoTask,
    find_task,
    load_initial_states,
    num_initial_states,
)
from benchmarks.rendering import gl_backend
from benchmarks.suite import EpisodeSpec, Expert, Observation, episode_specs
from world_modality.system.errors import InvalidInputError

FPS = 20
"""Control steps per second of simulated time."""
ACTION_DIM = 7
STATE_DIM = 8

IMAGE_KEY = "observation.images.image"
WRIST_IMAGE_KEY = "observation.images.image2"
IMAGE_KEYS = (IMAGE_KEY, WRIST_IMAGE_KEY)
STATE_KEY = "observation.state"

NO_OP = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
"""Stand still with an opening gripper."""
NUM_SETTLING_STEPS = 10


class LiberoSimulator(Scene):
    """One task of LIBERO that resets to an initial state, executes actions and renders.

    Observations are dicts of `observation.images.image` and `observation.images.image2` (uint8
    [height, width, 3]: the scene, and the view from the hand) and `observation.state` (float32 [8]:
    position of the hand in m, its axis-angle rotation in rad, positions of the two fingers in m).
    As in LIBERO they are a sample that robosuite takes one of its 25 physics steps before the end
    of a control step.

    The same initial state and actions give the same observations, whatever was played before.
    `Scene` has what scripts read of the simulator's true state.
    """

    def __init__(
        self,
        suite: str,
        task: str,
        rendering: LiberoRendering | None,
        image_keys: Sequence[str] = IMAGE_KEYS,
    ) -> None:
        """Build the simulator (2 s, and 5 s more for the first in a process) and its renderer.

        Args:
            suite: such as `libero_object`.
            task: the suite's name of the task.
            rendering: None for physics alone; `observe` then fails, `observe_state` works.
            image_keys: the cameras that `observe` renders; each costs as much as the other.

        Raises:
            MissingKeyError: the suite or the task is unknown.
            InvalidInputError: the installed LIBERO has no resources for the task.
            UserError: the simulator is not installed, or there is no way to render off screen.
        """
        os.environ["MUJOCO_GL"] = rendering.gl_backend if rendering else gl_backend()
        found = find_task(suite, task)
        self.suite = suite
        self.task = task
        self.rendering = rendering
        self.image_keys = tuple(image_keys)
        self._initial_states = load_initial_states(found)
        with numpy_random(0):
            super().__init__(build_environment(found.bddl_path, FPS))
        model = self._env.sim.model._model
        self._site_rgba = model.site_rgba.copy()
        self._seen = watch_samples(self._env, FPS)
        self._renderer = LiberoRenderer(model, rendering) if rendering else None

    def reset(self, initial_state: int) -> None:
        """Start an episode in the benchmark's stored state of that number, and let it settle.

        What no stored state holds, the exact place of cabinets and stoves within their regions, is
        drawn after `np.random.seed(initial_state)`.

        Raises:
            InvalidInputError: there is no such state.
        """
        if not 0 <= initial_state < len(self._initial_states):
            raise InvalidInputError(
                f"{self.task} of {self.suite} has the initial states 0 to "
                f"{len(self._initial_states) - 1}, not {initial_state}"
            )
        self._restart(initial_state)
        self._settle(self._initial_states[initial_state])

    def reset_sampled(self, seed: int) -> None:
        """Start an episode in a placement drawn by the task's own sampler, and let it settle.

        Args:
            seed: not negative. No seed draws one of the benchmark's stored states.
        """
        # Eight words, so that no seed meets the single number that a stored state is reset with.
        self._restart(np.random.SeedSequence(seed).generate_state(8, np.uint32))
        self._settle(self.simulator_state())

    def observe(self) -> Observation:
        """Return what is seen now; this renders.

        Raises:
            ValueError: the simulator was built without a rendering.
        """
        if self.rendering is None or self._renderer is None:
            raise ValueError("built without a rendering; observe_state() needs none")
        cameras = {
            IMAGE_KEY: self.rendering.camera,
            WRIST_IMAGE_KEY: self.rendering.wrist_camera,
        }
        images = {key: self._renderer.view(self._seen, cameras[key]) for key in self.image_keys}
        return {**images, **self.observe_vectors()}

    def observe_vectors(self) -> Observation:
        """Return the vectors of `observe` without rendering."""
        return {STATE_KEY: self.observe_state()}

    def observe_state(self) -> Float32[np.ndarray, "8"]:
        """Return the robot's state as `observe` has it, without rendering."""
        robot = self._env.robots[0]
        hand = self._env.sim.model.body_name2id(robot.robot_model.eef_name)
        position = self._seen.site_xpos[robot.eef_site_id]
        rotation = axis_angle(np.roll(self._seen.xquat[hand], -1))
        fingers = self._seen.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate((position, rotation, fingers)).astype(np.float32)

    def step(self, action: Float32[np.ndarray, " A"]) -> bool:
        """Execute one action (1/20 s) and tell whether the task is solved now.

        Args:
            action: how far before the hand its target lies (1 is 5 cm), how it is turned against
                the hand (axis-angle, 1 is 0.5 rad), and the gripper (-1 opens, 1 closes); clipped
                to [-1, 1].

        Raises:
            ValueError: the action is not seven finite numbers.
        """
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {ACTION_DIM} finite numbers, got {action}")
        _, _, solved, _ = self._env.step(np.clip(action, -1, 1).astype(np.float64))
        return bool(solved)

    def expert(self) -> Expert:
        """Return a script that plays the episode that has just been reset.

        Raises:
            InvalidInputError: the task is none that it can play.
        """
        from benchmarks.libero.fixture_expert import FixtureExpert
        from benchmarks.libero.scripted_expert import PickAndPlaceExpert

        goals = self.goal()
        if len(goals) == 1 and goals[0][0] in ("open", "turnon"):
            return FixtureExpert(self, goals[0][1]).act
        return PickAndPlaceExpert(self).act

    def close(self) -> None:
        """Free the rendering context."""
        if self._renderer is not None:
            self._renderer.close()

    def _restart(self, seed: int | UInt32[np.ndarray, " words"]) -> None:
        # What a reset that keeps the compiled model leaves as the last episode had it.
        put_fixtures_at_origin(self._env)
        self._env.sim.model._model.site_rgba[:] = self._site_rgba
        gripper = self._env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)
        with numpy_random(seed):
            draw_placement(self._env)

    def _settle(self, state: Float64[np.ndarray, " state"]) -> None:
        self._env.sim.set_state_from_flattened(state)
        self._env.sim.forward()
        self._env._post_process()
        self._env._update_observables(force=True)
        for _ in range(NUM_SETTLING_STEPS):
            self._env.step(np.array(NO_OP))


@dataclass(frozen=True)
class LiberoSuite:
    """One of LIBERO's suites under one rendering.

    Attributes:
        name: such as `libero_object`.
        rendering: how images are made.
        image_keys: the cameras that are rendered.
    """

    name: str
    rendering: LiberoRendering
    image_keys: Sequence[str] = IMAGE_KEYS
    state_keys: Sequence[str] = (STATE_KEY,)
    fps: int = FPS
    action_dim: int = ACTION_DIM

    def observing(self, image_keys: Sequence[str]) -> "LiberoSuite":
        """Return the suite with these of its cameras alone."""
        return replace(self, image_keys=tuple(image_keys))

    def record(self) -> dict[str, Any]:
        """Return versions, GL backend and rendering."""
        return {
            "versions": simulator_versions(),
            "gl_backend": self.rendering.gl_backend,
            "rendering": self.rendering.record(),
        }

    def open(self, task: str) -> LiberoSimulator:
        """Build the simulator of one task."""
        return LiberoSimulator(self.name, task, self.rendering, self.image_keys)


def evaluation_episodes(
    tasks: Sequence[LiberoTask], num_episodes: int, seed: int, max_steps: int
) -> list[EpisodeSpec]:
    """Return the rollouts of tasks: episode i starts in the benchmark's stored state i.

    Raises:
        InvalidInputError: a task has fewer stored states than episodes are wanted.
    """
    for task in tasks:
        num_states = num_initial_states(task)
        if num_states < num_episodes:
            raise InvalidInputError(
                f"--n_trials {num_episodes}: the benchmark has {num_states} initial states of "
                f"{task.name}; give --n_trials {num_states} or fewer"
            )
    instructions = {task.name: task.instruction for task in tasks}
    return episode_specs(instructions, num_episodes, seed, max_steps, lambda _, episode: episode)
