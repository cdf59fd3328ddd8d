"""Which way a recording's horizontal numbers point, so that a motion has a side."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from world_modality.system.errors import InvalidInputError

Side = Literal["left", "right", "forward", "back"]
# To the right, forward and up.
Shift = tuple[float, float, float]
NO_SHIFT: Shift = (0.0, 0.0, 0.0)
# (to the right, forward) of one unit towards each side.
_WAYS: dict[Side, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "forward": (0.0, 1.0),
    "back": (0.0, -1.0),
}
# Where a negative and a positive distance lead, to the right and forward.
_OPPOSITES: tuple[tuple[Side, Side], ...] = (("left", "right"), ("back", "forward"))
# A level motion has one of the compass's sixteen ways, each 22.5 degrees wide: one side, one side
# and slightly another, or two sides alike.
SIDE_SHARE = float(np.sin(np.pi / 16))
SLIGHT_SHARE = float(np.sin(3 * np.pi / 16))


@dataclass(frozen=True)
class Leaning:
    """A side that a movement leads to.

    Attributes:
        side: which.
        is_slight: whether less of the movement goes there than elsewhere.
    """

    side: Side
    is_slight: bool


@dataclass(frozen=True)
class HandAxes:
    """Where the first and the second number of the hand's position grow, as the robot sees it.

    Attributes:
        first: of the first number.
        second: of the second one.
    """

    first: Side
    second: Side

    def __post_init__(self) -> None:
        (a, b), (c, d) = _WAYS[self.first], _WAYS[self.second]
        if a * c + b * d != 0:
            raise InvalidInputError(
                f"--position_axes {self.first} {self.second}: one of them has to be left or right, "
                "the other forward or back, as the robot sees it; right forward in MetaWorld, "
                "forward left in LIBERO"
            )

    @classmethod
    def of(cls, axes: tuple[Side, Side] | None) -> "HandAxes | None":
        """Read `--position_axes`.

        Raises:
            InvalidInputError: they span no plane.
        """
        return None if axes is None else cls(*axes)

    def shift(self, moved: Float[np.ndarray, "3"]) -> Shift:
        """Return how far to the right, forward and up a difference of positions leads."""
        first, second = _WAYS[self.first], _WAYS[self.second]
        x, y, up = (float(part) for part in moved)
        return (x * first[0] + y * second[0], x * first[1] + y * second[1], up)


def leanings_of(shift: Shift) -> tuple[Leaning, ...]:
    """Return the sides that a shift leads to: none where it is upright, two where it is slanting.

    Args:
        shift: to the right, forward and up; no shift leads to no side.
    """
    length = float(np.linalg.norm(shift))
    found: list[Leaning] = []
    for distance, sides in zip(shift[:2], _OPPOSITES, strict=True):
        if length > 0 and abs(distance) >= SIDE_SHARE * length:
            found.append(Leaning(sides[distance > 0], abs(distance) < SLIGHT_SHARE * length))
    return tuple(found)
