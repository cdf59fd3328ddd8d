"""MetaWorld behind one adapter, the only file that imports metaworld, and the suite that opens it.

Conventions are those of LeRobot's public MetaWorld data: camera `corner2` at a moved position,
images turned by 180 degrees, a 4-d state and a 4-d action. Two things differ from LeRobot's
`MetaworldEnv`:

- images have the size asked for (lerobot 0.4.4 always renders 480x480), and by default no shadows,
  reflections or multisampling, which cost most of the time on a machine without a GPU;
- `reset` brings derived quantities up to date before the first observation. MetaWorld 3.1.1 moves
  objects by editing the model and then observes without a forward pass: in drawer-open, both window
  tasks, faucet-open, dial-turn, door-lock and lever-pull, its first observation has the object
  where it stood in the layout before, up to 20 cm off.
"""

import importlib.metadata
import importlib.util
import os
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from benchmarks.metaworld.cameras import IMAGE_KEY, MetaworldRendering
from benchmarks.metaworld.scene_change import SceneChange
from benchmarks.rendering import RENDERING_ERRORS, Renderer, rendering_failed
from benchmarks.suite import (
    EVALUATION_STREAM,
    EpisodeSpec,
    Expert,
    Observation,
    episode_specs,
    layout_seed,
)
from world_modality.system.errors import UserError, missing_key

SUITE_NAME = "metaworld"
FPS = 80
ACTION_DIM = 4
STATE_DIM = 4
MAX_EPISODE_STEPS = 500

STATE_KEY = "observation.state"
ENVIRONMENT_STATE_KEY = "observation.environment_state"

STATE_NAMES = ("hand_x", "hand_y", "hand_z", "gripper_opening")
ACTION_NAMES = ("hand_dx", "hand_dy", "hand_dz", "gripper_effort")
_POSE = ("x", "y", "z", "quat_0", "quat_1", "quat_2", "quat_3")
ENVIRONMENT_STATE_NAMES = (
    *(f"object_1_{part}" for part in _POSE),
    *(f"object_2_{part}" for part in _POSE),
    *(f"goal_{part}" for part in "xyz"),
)


def simulator_versions() -> dict[str, str]:
    """Return the versions that decide what an episode looks like, without importing the simulator.

    Raises:
        UserError: the simulator is not installed.
    """
    packages = ("metaworld", "mujoco")
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed; pip install metaworld==3.1.1")
    return {package: importlib.metadata.version(package) for package in packages}


class MetaworldSimulator:
    """One task of MetaWorld that resets to a layout, executes actions and renders.

    Observations are dicts of an image of each camera (`observation.image`, uint8 [height, width,
    3]; see `MetaworldRendering.cameras`), `observation.state` (float32 [4]: hand position in m,
    gripper opening in [0, 1]) and `observation.environment_state` (float32 [17], see
    `ENVIRONMENT_STATE_NAMES`: two object poses and the goal position, in m; tasks with one object
    have zeros for the second; a quaternion's order is the task's own).

    The same layout seed and actions give the same observations, whatever was played before.
    """

    def __init__(
        self, task: str, rendering: MetaworldRendering, image_keys: Sequence[str] | None = None
    ) -> None:
        """Build the simulator and its renderer (0.5 to 0.8 s).

        Args:
            task: MetaWorld's name of the task.
            rendering: how images are made.
            image_keys: the cameras that `observe` renders, each of which costs as much as the
                others; all of the rendering's if left out.

        Raises:
            MissingKeyError: the task is unknown.
            UserError: the simulator is not installed, or there is no way to render off screen.
        """
        os.environ["MUJOCO_GL"] = rendering.gl_backend
        environments = _import_simulator().env_dict.ALL_V3_ENVIRONMENTS
        if task not in environments:
            raise missing_key("task", task, environments, "MetaWorld")
        self.task = task
        self.rendering = rendering
        self.image_keys = tuple(rendering.cameras if image_keys is None else image_keys)
        self._env = _build_environment(task, environments[task])
        model = self._env.model
        for camera in rendering.cameras.values():
            if camera.position is not None:
                model.cam_pos[model.camera(camera.name).id] = camera.position
        for change in rendering.scene:
            for site in change.hidden_sites:
                model.site(site).rgba[3] = 0.0
        self._renderer = Renderer(model, rendering)
        self._raw_observation: np.ndarray | None = None
        self._layout_seed = self._frame = 0

    @property
    def raw_observation(self) -> Float64[np.ndarray, "39"]:
        """A copy of MetaWorld's own observation, which the scripted experts read; goal included.

        A copy, since some experts write into what they are given: door-open's moves the door.
        """
        assert self._raw_observation is not None, "reset() comes first"
        return self._raw_observation.copy()

    def reset(self, initial_state: int) -> None:
        """Start an episode in the layout that the seed `initial_state` determines."""
        import mujoco

        self._layout_seed, self._frame = initial_state, 0
        self._env.seed(initial_state)
        self._env.reset()
        for change in self.rendering.scene:
            goal = change.goal(initial_state)
            if goal is not None:
                self._env._target_pos = goal
        mujoco.mj_forward(self._env.model, self._env.data)
        current = self._env._get_curr_obs_combined_no_goal()
        self._env._prev_obs = current
        self._raw_observation = np.hstack((current, current, self._env._get_pos_goal()))

    def observe(self) -> Observation:
        """Return what is seen now; this renders."""
        images = {key: self.render(key) for key in self.image_keys}
        return {**images, **self.observe_vectors()}

    def observe_vectors(self) -> Observation:
        """Return the vectors of `observe` without rendering."""
        raw = self.raw_observation
        return {
            STATE_KEY: raw[:STATE_DIM].astype(np.float32),
            ENVIRONMENT_STATE_KEY: np.hstack((raw[4:18], raw[36:39])).astype(np.float32),
        }

    def step(self, action: Float32[np.ndarray, " A"]) -> bool:
        """Execute one action (1/80 s) and tell whether the task is solved now.

        Args:
            action: hand displacement and gripper effort; clipped to [-1, 1].

        Raises:
            ValueError: the action is not four finite numbers.
        """
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {ACTION_DIM} finite numbers, got {action}")
        raw, _, _, _, info = self._env.step(np.clip(action, -1, 1))
        self._raw_observation = raw
        self._frame += 1
        return bool(info["success"])

    def expert(self) -> Expert:
        """Return MetaWorld's scripted policy, or that of a change of the scene; it does not clip.

        Raises:
            MissingKeyError: the task has none.
        """
        for change in self.rendering.scene:
            expert = change.expert(lambda: self.raw_observation, self._layout_seed)
            if expert is not None:
                return expert
        policies = _import_simulator().policies.ENV_POLICY_MAP
        if self.task not in policies:
            raise missing_key("scripted expert", self.task, policies, "MetaWorld")
        # The experts rely on the simulator's clipping and warn at every large step.
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
        policy = policies[self.task]()
        return lambda: policy.get_action(self.raw_observation)

    def in_contact(self) -> bool:
        """Tell whether the robot touches anything but the table and the floor."""
        model, data = self._env.model, self._env.data
        roots = model.body_rootid[model.geom_bodyid[data.contact.geom]]
        robot = model.body_rootid[model.body("hand").id]
        others = roots[(roots == robot).any(axis=1)].ravel()
        return bool(np.isin(others, (0, robot, model.body("tablelink").id), invert=True).any())

    def object_height(self) -> float:
        """Return the height of the task's first object in m."""
        return float(self.raw_observation[6])

    def render(self, image_key: str = IMAGE_KEY) -> UInt8[np.ndarray, "height width 3"]:
        """Return a camera's current image, turned as the camera's `flip_axes` says."""
        camera = self.rendering.cameras[image_key]
        markers = [
            marker
            for change in self.rendering.scene
            for marker in change.markers(self._frame, self._layout_seed)
        ]
        image = self._renderer.render(self._env.data, camera.name, markers=markers)
        return np.ascontiguousarray(np.flip(image, camera.flip_axes))

    def close(self) -> None:
        """Free the rendering context."""
        self._renderer.close()


@dataclass(frozen=True)
class MetaworldSuite:
    """MetaWorld under one rendering, with all of its cameras or some."""

    rendering: MetaworldRendering
    name: str = SUITE_NAME
    fps: int = FPS
    action_dim: int = ACTION_DIM
    image_keys: Sequence[str] = ()
    state_keys: Sequence[str] = (STATE_KEY, ENVIRONMENT_STATE_KEY)

    def __post_init__(self) -> None:
        if not self.image_keys:
            object.__setattr__(self, "image_keys", tuple(self.rendering.cameras))

    def observing(self, image_keys: Sequence[str]) -> "MetaworldSuite":
        """Return the suite with these of its cameras alone."""
        return replace(self, image_keys=tuple(image_keys))

    def record(self) -> dict[str, Any]:
        """Return versions, GL backend and rendering."""
        return {
            "versions": simulator_versions(),
            "gl_backend": self.rendering.gl_backend,
            "rendering": self.rendering.record(),
        }

    def open(self, task: str) -> MetaworldSimulator:
        """Build the simulator of one task."""
        return MetaworldSimulator(task, self.rendering, self.image_keys)


def evaluation_episodes(
    instructions: Mapping[str, str],
    num_episodes: int,
    seed: int,
    max_steps: int,
    scene: Sequence[SceneChange] = (),
) -> list[EpisodeSpec]:
    """Return the rollouts of tasks (name to instruction), in layouts that no demonstration has."""

    def layout(task: str, episode: int) -> int:
        drawn = layout_seed(seed, EVALUATION_STREAM, task, episode)
        for change in scene:
            drawn = change.evaluated_layout(drawn, episode)
        return drawn

    return episode_specs(instructions, num_episodes, seed, max_steps, layout)


def _import_simulator() -> Any:
    simulator_versions()
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import metaworld
        import metaworld.policies
    except RENDERING_ERRORS as error:
        raise rendering_failed(error) from error
    return metaworld


def _build_environment(task: str, environment_class: Any) -> Any:
    from metaworld.types import Task

    env = environment_class()
    # The random vector is drawn again at every reset; the experts need the goal in the observation.
    content = {"env_cls": environment_class, "rand_vec": None, "partially_observable": False}
    env.set_task(Task(env_name=task, data=pickle.dumps(content)))
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    return env
