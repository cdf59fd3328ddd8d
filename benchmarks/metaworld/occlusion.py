"""The occlusion: from some frame on a screen hides part of the table from the cameras."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.metaworld.scene_change import Position, SceneChange
from benchmarks.rendering import Marker

DEFAULT_POSITION: Position = (0.2, 0.5, 0.15)
DEFAULT_SIZE: Position = (0.3, 0.02, 0.3)
_COLOUR = (0.15, 0.15, 0.2, 1.0)


@dataclass(frozen=True)
class Occlusion(SceneChange):
    """An opaque box that the robot passes through.

    Attributes:
        from_frame: the first frame that it is seen in.
        position: of its centre, in m.
        size: its extent along each axis, in m.
    """

    name: ClassVar[str] = "occlusion"

    from_frame: int
    position: Position = DEFAULT_POSITION
    size: Position = DEFAULT_SIZE

    @property
    def min_steps(self) -> int:
        """Steps until the screen is seen."""
        return self.from_frame + 1

    def markers(self, frame: int, layout_seed: int) -> Sequence[Marker]:
        """Return the screen from its frame on."""
        if frame < self.from_frame:
            return ()
        x, y, z = (extent / 2 for extent in self.size)
        return (Marker("box", self.position, (x, y, z), _COLOUR),)
