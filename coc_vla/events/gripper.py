"""When a gripper closes and opens, from the commands that a recording holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from world_modality.source.lerobot_format import dimension_names
from world_modality.system.errors import InvalidInputError

NO_GRIPPER = "none"
# A command counts as closing above the first share of the way from open to closed, as opening below
# the second; between them the gripper stays what it was. MetaWorld's experts leave the command at
# half way while they approach.
CLOSING, OPENING = 0.65, 0.35
MIN_EVENT_FRAMES = 3
# How far a command may lie outside, in shares of the way: a drive overshoots, noise is added.
OVERSHOOT = 0.05


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

    def events(
        self, actions: Float[np.ndarray, "T A"], origin: str = "the recording"
    ) -> tuple[GripperEvent, ...]:
        """Return when the gripper is told to close and to open, in order.

        It counts as open before the first command; a change that lasts less than three frames is
        none.

        Args:
            actions: of one episode.
            origin: where they are from, for the error.

        Raises:
            InvalidInputError: a command lies outside `open_command` and `closed_command`, by more
                than 5 % of the way between them.
        """
        if self.dim is None:
            return ()
        commands = actions[:, self.dim].astype(np.float64)
        span = self.closed_command - self.open_command
        share = (commands - self.open_command) / span
        if share.min() < -OVERSHOOT or share.max() > 1 + OVERSHOOT:
            raise InvalidInputError(
                f"--gripper_commands {self.open_command:g} {self.closed_command:g}: in dimension "
                f"{self.dim} of {origin} the gripper's commands run from {commands.min():g} to "
                f"{commands.max():g}; give the command that opens this gripper and the one that "
                "closes it, or the dimension that holds them with --gripper_dim"
            )
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
    num_dims = math.prod(feature["shape"])
    if requested == NO_GRIPPER:
        return None
    if requested is not None:
        if not 0 <= int(requested) < num_dims:
            raise InvalidInputError(
                f"--gripper_dim {requested}: column {key} has dimensions 0 to {num_dims - 1}"
            )
        return int(requested)
    names = dimension_names(feature.get("names"), num_dims) or []
    found = [position for position, name in enumerate(names) if "gripper" in name.lower()]
    if len(found) != 1:
        raise InvalidInputError(
            f"which dimension of column {key} commands the gripper? Expected one with 'gripper' in "
            f"its name, found {len(found)} among {described_names(feature)}; name it with "
            f"--gripper_dim (0 to {num_dims - 1}), or --gripper_dim {NO_GRIPPER} for a robot "
            "without one"
        )
    return found[0]


def described_names(feature: Mapping[str, Any]) -> str:
    """Say what names a column has, and where they are not one for each dimension."""
    names, num_dims = feature.get("names"), math.prod(feature["shape"])
    found = dimension_names(names, num_dims)
    if found is not None:
        return str(found)
    told = f"{names}, which is not one name for each" if names else "no names"
    return f"{told} of its {num_dims} dimensions"
