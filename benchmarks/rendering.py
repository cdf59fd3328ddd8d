"""Off-screen images of MuJoCo's simulators, and the record of how they are made.

A policy has to be rolled out with the rendering it was trained on, so a recording keeps it.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8

from world_modality.system.errors import InvalidInputError, UserError

# Not `Self`, which the run-time check of signatures does not take in a method.
RenderingT = TypeVar("RenderingT", bound="Rendering")
RENDERING_ERRORS = (ImportError, AttributeError, RuntimeError, ValueError)
"""What MuJoCo and PyOpenGL raise where there is no way to render: an AttributeError on None where
libEGL is not there, a ValueError where MUJOCO_EGL_DEVICE_ID is no number."""


class Rendering:
    """How images are made; each suite's settings are a frozen dataclass of this, with defaults.

    Attributes:
        flip_axes: the image's axes that are reversed (0 rows, 1 columns).
        image_size: height and width in pixels.
        offsamples: samples of a pixel; 0 is without multisampling.
        shadows: whether shadows are drawn.
        reflections: whether reflections are drawn.
        gl_backend: MuJoCo's, such as `egl`.
    """

    flip_axes: tuple[int, ...]
    image_size: int
    offsamples: int
    shadows: bool
    reflections: bool
    gl_backend: str

    @classmethod
    def lerobot(cls: type[RenderingT]) -> RenderingT:
        """Return the rendering of LeRobot's public data of the suite."""
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON holds them (tuples as lists)."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_record(cls: type[RenderingT], record: Mapping[str, Any]) -> RenderingT:
        """Rebuild the settings that `record` wrote.

        Raises:
            InvalidInputError: a setting is missing or unknown.
        """
        known = set(vars(cls()))
        if set(record) != known:
            raise InvalidInputError(
                f"a rendering has the settings {sorted(known)}, the record has {sorted(record)}"
            )
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        return cls(**settings)


@dataclass(frozen=True)
class Marker:
    """A body that is drawn and nothing else: it is in the image, not in the simulator's model.

    Attributes:
        shape: a box along the axes of the scene, or a sphere.
        position: of its centre, in m.
        half_size: half of its extent along each axis, in m.
        colour: red, green, blue and opacity in [0, 1].
    """

    shape: Literal["box", "sphere"]
    position: tuple[float, float, float]
    half_size: tuple[float, float, float]
    colour: tuple[float, float, float, float]


class Renderer:
    """Draws scenes of one MuJoCo model, at the cost that a `Rendering` asks for."""

    def __init__(self, model: Any, rendering: Rendering) -> None:
        """Make the rendering context.

        Raises:
            UserError: there is no way to render off screen.
        """
        import mujoco

        size = rendering.image_size
        model.vis.quality.offsamples = rendering.offsamples  # read when the context is made
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except (*RENDERING_ERRORS, mujoco.FatalError) as error:
            raise rendering_failed(error) from error
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = rendering.shadows
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = rendering.reflections

    def render(
        self, data: Any, camera: str, option: Any = None, markers: Sequence[Marker] = ()
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return a camera's image of the scene in MuJoCo's `data`, drawn with its `MjvOption`.

        `markers` are drawn in the scene as well, and are gone in the next image.
        """
        self._renderer.update_scene(data, camera=camera, scene_option=option)
        for marker in markers:
            _draw(marker, self._renderer.scene)
        image: np.ndarray = self._renderer.render()
        return image

    def close(self) -> None:
        """Free the rendering context."""
        self._renderer.close()


def _draw(marker: Marker, scene: Any) -> None:
    import mujoco

    types = {"box": mujoco.mjtGeom.mjGEOM_BOX, "sphere": mujoco.mjtGeom.mjGEOM_SPHERE}
    mujoco.mjv_initGeom(
        scene.geoms[scene.ngeom],
        types[marker.shape],
        np.array(marker.half_size, np.float64),
        np.array(marker.position, np.float64),
        np.eye(3).ravel(),
        np.array(marker.colour, np.float32),
    )
    scene.ngeom += 1


def gl_backend() -> str:
    """Return the backend that MuJoCo renders with: `MUJOCO_GL`, or EGL where it is unset."""
    return os.environ.get("MUJOCO_GL") or "egl"


def rendering_failed(error: Exception) -> UserError:
    """Build the error for a machine where MuJoCo cannot render off screen, with what mends it."""
    sys.unraisablehook = _ignore_half_made_renderer
    advice = "unset MUJOCO_GL"
    device = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if device is not None:
        advice += (
            f" and MUJOCO_EGL_DEVICE_ID={device} (it counts EGL's own devices from 0, whatever "
            "CUDA_VISIBLE_DEVICES says)"
        )
    platform = os.environ.get("PYOPENGL_PLATFORM")
    if platform not in (None, gl_backend()):  # MuJoCo sets it to what it renders with
        advice += f" and PYOPENGL_PLATFORM={platform}"
    return UserError(
        f"MuJoCo cannot render off screen with MUJOCO_GL={gl_backend()} ({error}); {advice} and "
        "install EGL, on Debian and Ubuntu: apt-get install libegl1 libgles2 libgl1-mesa-dri"
    )


def _ignore_half_made_renderer(unraisable: Any) -> None:
    # MuJoCo's destructors fail on what its constructors did not come to.
    if not str(getattr(unraisable.object, "__module__", "")).startswith("mujoco"):
        sys.__unraisablehook__(unraisable)
