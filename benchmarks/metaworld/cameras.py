"""MetaWorld's cameras, and how their images are made.

The first camera is that of LeRobot's public MetaWorld data unless another is named: `corner2`,
moved to where that data has it. Each camera has a feature of its own in an observation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.metaworld.scene_change import Position, SceneChange
from benchmarks.metaworld.scene_flags import SCENE_CHANGES, scene_of_record, scene_record
from benchmarks.rendering import Rendering
from world_modality.system.errors import InvalidInputError, missing_key

IMAGE_KEY = "observation.image"
"""Feature of the first camera."""
FURTHER_IMAGE_KEY = "observation.images.{camera}"
"""Feature of each further one."""

Axes = tuple[int, ...]

PUBLIC_CAMERA = "corner2"
PUBLIC_POSITION: Position = (0.75, 0.075, 0.7)
"""In m; LeRobot's public data and evaluator move the camera there."""

_TURNED: Axes = (0, 1)
CAMERAS: dict[str, Axes] = {
    PUBLIC_CAMERA: _TURNED,
    "topview": (),
    "gripperPOV": (),
    "corner": _TURNED,
    "corner3": _TURNED,
    "corner4": _TURNED,
    "behindGripper": (),
}
"""MetaWorld's cameras, and the axes to reverse until what is up in the scene is up in the image
(seen from above, or from the hand: what is before the robot)."""


@dataclass(frozen=True)
class MetaworldCamera:
    """One camera.

    Attributes:
        name: MuJoCo's.
        position: in m, of a camera that moves with the hand relative to it; None leaves the camera
            where MetaWorld has it.
        flip_axes: the image's axes that are reversed (0 rows, 1 columns).
    """

    name: str
    position: Position | None
    flip_axes: Axes

    @classmethod
    def called(cls, name: str, position: Position | None = None) -> "MetaworldCamera":
        """Return a camera, upright, at a position or where it is by default.

        Raises:
            MissingKeyError: MetaWorld has no camera of that name.
        """
        if name not in CAMERAS:
            raise missing_key("camera", name, CAMERAS, "MetaWorld (--camera chooses some)")
        if position is None and name == PUBLIC_CAMERA:
            position = PUBLIC_POSITION
        return cls(name, position, CAMERAS[name])


@dataclass(frozen=True)
class MetaworldRendering(Rendering):
    """How MetaWorld's images are made, and what is seen in them besides the task's own scene.

    Cameras beyond the first and changes of the scene are in the record where there are any.

    Attributes:
        camera: name of the first camera.
        camera_position: see `MetaworldCamera.position`.
        further_cameras: those after the first.
        scene: what changes the scene, such as a cue; a goal that the cue tells is part of it.
    """

    camera: str = PUBLIC_CAMERA
    camera_position: Position | None = PUBLIC_POSITION
    flip_axes: Axes = _TURNED
    image_size: int = 128
    offsamples: int = 0
    shadows: bool = False
    reflections: bool = False
    gl_backend: str = "egl"
    further_cameras: tuple[MetaworldCamera, ...] = field(default=())
    scene: tuple[SceneChange, ...] = field(default=())

    @classmethod
    def lerobot(cls) -> "MetaworldRendering":
        """Return the rendering of LeRobot's public data: MuJoCo's own settings, 480x480."""
        return cls(image_size=480, offsamples=4, shadows=True, reflections=True)

    @property
    def cameras(self) -> dict[str, MetaworldCamera]:
        """All cameras, by their feature in an observation, the first one first."""
        first = MetaworldCamera(self.camera, self.camera_position, self.flip_axes)
        further = {FURTHER_IMAGE_KEY.format(camera=one.name): one for one in self.further_cameras}
        return {IMAGE_KEY: first, **further}

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON holds them; cameras and changes by name, if there are any."""
        record = super().record()
        del record["further_cameras"], record["scene"]
        if self.further_cameras:
            record["further_cameras"] = {
                one.name: {
                    "position": None if one.position is None else list(one.position),
                    "flip_axes": list(one.flip_axes),
                }
                for one in self.further_cameras
            }
        return {**record, **scene_record(self.scene)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "MetaworldRendering":
        """Rebuild the settings that `record` wrote.

        Raises:
            InvalidInputError: a setting is missing or unknown.
        """
        further = [
            MetaworldCamera(
                name,
                None if settings["position"] is None else tuple(settings["position"]),
                tuple(settings["flip_axes"]),
            )
            for name, settings in record.get("further_cameras", {}).items()
        ]
        scene = scene_of_record(record)
        others = {name: value for name, value in record.items() if name not in SCENE_CHANGES}
        return super().from_record({**others, "further_cameras": further, "scene": scene})


def chosen_cameras(names: Sequence[str], positions: Sequence[str]) -> list[MetaworldCamera]:
    """Return the cameras that `--camera` and `--camera_position` ask for.

    Args:
        names: of the cameras.
        positions: `name=x,y,z` in m, of some of them.

    Raises:
        InvalidInputError: no camera is named or one twice, or a position is not of that form or of
            a camera that is not recorded.
        MissingKeyError: MetaWorld has no camera of a name; lists those there are.
    """
    if not names or len(set(names)) != len(names):
        raise InvalidInputError(
            f"--camera needs the names of distinct cameras, got {' '.join(names) or 'none'}"
        )
    moved: dict[str, Position] = {}
    for text in positions:
        name, position = _read_position(text)
        if name not in names or name in moved:
            problem = "is given twice" if name in moved else "is of a camera that is not recorded"
            raise InvalidInputError(
                f"--camera_position {text} {problem}; give one position at most for each of "
                f"--camera {' '.join(names)}"
            )
        moved[name] = position
    return [MetaworldCamera.called(name, moved.get(name)) for name in names]


def _read_position(text: str) -> tuple[str, Position]:
    name, _, numbers = text.partition("=")
    try:
        x, y, z = (float(number) for number in numbers.split(","))
    except ValueError:
        x = y = z = np.nan
    if not np.isfinite([x, y, z]).all():
        raise InvalidInputError(
            f"--camera_position {text} is not name=x,y,z with three numbers in m, as in "
            f"{PUBLIC_CAMERA}={','.join(map(str, PUBLIC_POSITION))}"
        )
    return name, (x, y, z)
