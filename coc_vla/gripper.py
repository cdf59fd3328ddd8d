"""When a gripper closes and opens, from the commands that a recording holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from world_modality.errors import InvalidInputError

NO_GRIPPER = "none"
# A command counts as closing above the first share of the way from open to closed, as opening below
# the second; between them the gripper stays what it was. MetaWorld's experts leave the command at
# half way while they approach.
CLOSING, OPENING = 0.65, 0.35
MIN_EVENT_FRAMES = 3


@dataclass(frozen=True)
class GripperEvent:
    """The frame at which the gripper is told to close or to open."""

    frame: int
    kind: Literal["close", "open"]


@dataclass(frozen=True)
class GripperChannel:
    """Where the gripper's command stands in an action.

    Attributes:
        dim: position in the action, None for a robot without a gripper.
        open_command: the command that opens it fully.
        closed_command: the command that closes it fully. -1 and 1 in MetaWorld and LIBERO.
    """

    dim: int | None
    open_command: float = -1.0
    closed_command: float = 1.0

    def __post_init__(self) -> None:
        if self.open_command == self.closed_command:
            raise InvalidInputError(
                "--gripper_commands needs two different numbers: the command that opens the "
                f"gripper and the one that closes it; got {self.open_command} twice"
            )

    def events(self, actions: Float[np.ndarray, "T A"]) -> tuple[GripperEvent, ...]:
        """Return when the gripper is told to close and to open, in order.

        It counts as open before the first command; a change that lasts less than three frames is
        none.
        """
        if self.dim is None:
            return ()
        span = self.closed_command - self.open_command
        share = (actions[:, self.dim].astype(np.float64) - self.open_command) / span
        wanted = np.where(share > CLOSING, 1, np.where(share < OPENING, 0, -1))
        events: list[GripperEvent] = []
        closed = 0
        for frame, state in enumerate(wanted.tolist()):
            held = wanted[frame : frame + MIN_EVENT_FRAMES]
            if state in (-1, closed) or (held == 1 - state).any():
                continue
            closed = state
            events.append(GripperEvent(frame, "close" if closed else "open"))
        return tuple(events)


def find_gripper_dim(
    feature: Mapping[str, Any], key: str, requested: int | str | None
) -> int | None:
    """Find the gripper's dimension in an action by name, or check the one asked for.

    Args:
        feature: the column's entry in `meta/info.json`, with `shape` and `names`.
        key: the column.
        requested: `--gripper_dim`: a position, `none` for a robot without a gripper, or None.

    Raises:
        InvalidInputError: no such dimension; or none asked for, and not exactly one has `gripper`
            in its name.
    """
    num_dims = int(feature["shape"][0])
    if requested == NO_GRIPPER:
        return None
    if requested is not None:
        if not 0 <= int(requested) < num_dims:
            raise InvalidInputError(
                f"--gripper_dim {requested}: column {key} has dimensions 0 to {num_dims - 1}"
            )
        return int(requested)
    names = dimension_names(feature)
    found = [position for position, name in enumerate(names) if "gripper" in name.lower()]
    if len(found) != 1:
        raise InvalidInputError(
            f"which dimension of column {key} commands the gripper? Expected one with 'gripper' in "
            f"its name, found {len(found)} among {names or 'no names'}; name it with --gripper_dim "
            f"(0 to {num_dims - 1}), or --gripper_dim {NO_GRIPPER} for a robot without one"
        )
    return found[0]


def dimension_names(feature: Mapping[str, Any]) -> list[str]:
    """Return a column's names of dimensions; LeRobot has them as a list or under a heading."""
    names = feature.get("names")
    if isinstance(names, dict) and len(names) == 1:
        (names,) = names.values()
    return [str(name) for name in names] if isinstance(names, list) else []
