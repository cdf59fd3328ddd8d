"""Which way a recording's horizontal numbers point, so that a motion has a side."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from world_modality.errors import InvalidInputError

Side = Literal["left", "right", "forward", "back"]
# (to the right, forward) of one unit towards each side.
_WAYS: dict[Side, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "forward": (0.0, 1.0),
    "back": (0.0, -1.0),
}
# The eight ways are equally wide: a motion within 22.5 degrees of a side goes to it alone.
SIDE_SHARE = float(np.sin(np.pi / 8))


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

    def shift(self, moved: Float[np.ndarray, "3"]) -> tuple[float, float]:
        """Return how far to the right and how far forward a difference of positions leads."""
        first, second = _WAYS[self.first], _WAYS[self.second]
        x, y = float(moved[0]), float(moved[1])
        return (x * first[0] + y * second[0], x * first[1] + y * second[1])


def sides_of(shift: tuple[float, float]) -> tuple[Side, ...]:
    """Return the sides that a horizontal shift leads to: one, or two where it is slanting.

    Args:
        shift: to the right and forward; none leads to no side.
    """
    length = float(np.hypot(*shift))
    sides: list[Side] = []
    for distance, names in zip(shift, (("left", "right"), ("back", "forward")), strict=True):
        if length > 0 and abs(distance) >= SIDE_SHARE * length:
            sides.append(names[distance > 0])  # type: ignore[arg-type]
    return tuple(sides)
