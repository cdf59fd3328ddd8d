"""Which numbers of a recording are the hand's position and the gripper's command."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from coc_vla.events.motion import EpisodeMotion, GripperEvent, HandAxes, Side
from world_modality.source.lerobot_format import dimension_names
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError

NO_GRIPPER = "none"
# A command counts as closing above the first share of the way from open to closed, as opening below
# the second; between them the gripper stays what it was. MetaWorld's experts leave the command at
# half way while they approach.
CLOSING, OPENING = 0.65, 0.35
MIN_EVENT_FRAMES = 3
# How far a command may lie outside, in shares of the way: a drive overshoots, noise is added.
OVERSHOOT = 0.05


# What x, y and z are of where they are no position; the beginnings of words.
_NO_POSITION = re.compile(
    r"rot|orient|ang|axis|quat|euler|vel|speed|dot|acc|joint|force|torque|wrench|delta|imu|gyro"
)


@dataclass(frozen=True, kw_only=True)
class MotionFlags:
    """Where the hand's position and the gripper's command stand in a recording."""

    state_key: str = "observation.state"
    """Column of the state, which holds the hand's position."""
    action_key: str = "action"
    """Column of the action, which holds the gripper's command."""
    position_dims: tuple[int, int, int] | None = None
    """Dimensions of the state with the hand's position, height last; by default those whose names
    say x, y, z."""
    position_axes: tuple[Side, Side] | None = None
    """Directions in which the first two position dimensions grow, as the robot sees them: right
    forward in MetaWorld, forward left in LIBERO. Without it nothing is said, or scored, about left,
    right, forward and back."""
    gripper_dim: int | Literal["none"] | None = None
    """Dimension of the action that commands the gripper; by default the one named gripper. Give
    none for a robot without a gripper."""
    gripper_commands: tuple[float, float] = (-1.0, 1.0)
    """Action value that opens the gripper, and the one that closes it."""


@dataclass(frozen=True)
class GripperChannel:
    """The dimension of an action with the gripper's command, None for a robot without a gripper.

    The gripper opens fully at one command and closes fully at the other: -1 and 1 in MetaWorld and
    LIBERO.
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
        """Return when the gripper is told to close and to open in one episode, in order.

        It counts as open before the first command; a change that lasts less than three frames is
        none.

        Raises:
            InvalidInputError: a command lies outside `open_command` and `closed_command`, by more
                than 5 % of the way between them; says so of `origin`.
        """
        if self.dim is None:
            return ()
        commands = actions[:, self.dim].astype(np.float64)
        share = (commands - self.open_command) / (self.closed_command - self.open_command)
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
            if state not in (-1, closed) and not (held == closed).any():
                closed = state
                events.append(GripperEvent(frame, "close" if closed else "open"))
        return tuple(events)


@dataclass(frozen=True)
class MotionColumns:
    """The numbers of a frame that are the hand's position, height last, and the gripper's command.

    The axes are None where nobody knows which way the position's first two numbers grow.
    """

    state_key: str
    action_key: str
    position_dims: tuple[int, int, int]
    gripper: GripperChannel
    axes: HandAxes | None

    @classmethod
    def of(cls, source: LeRobotSource, flags: MotionFlags) -> "MotionColumns":
        """Find the numbers in a dataset's columns.

        Raises:
            MissingKeyError: no such column.
            InvalidInputError: the columns do not say which dimension is what, or the flags make no
                sense.
        """
        for key in (flags.state_key, flags.action_key):
            source.require(key)
        state, action = source.features[flags.state_key], source.features[flags.action_key]
        gripper = find_gripper_dim(action, flags.action_key, flags.gripper_dim)
        return cls(
            state_key=flags.state_key,
            action_key=flags.action_key,
            position_dims=find_position_dims(state, flags.state_key, flags.position_dims),
            gripper=GripperChannel(gripper, *flags.gripper_commands),
            axes=flags.position_axes and HandAxes(*flags.position_axes),
        )

    def motion(
        self,
        source: LeRobotSource,
        states: Float[np.ndarray, "T S"],
        actions: Float[np.ndarray, "T A"],
        first: int,
    ) -> EpisodeMotion:
        """Return the motion of one episode, whose first frame is frame `first` of the dataset.

        Raises:
            InvalidInputError: a gripper's command lies elsewhere than the flags say.
        """
        frames = f"frames {first}:{first + len(actions)}"
        events = self.gripper.events(
            actions, f"column {self.action_key} of {source.name}, {frames},"
        )
        return EpisodeMotion(states[:, list(self.position_dims)], events, source.fps, self.axes)


def find_gripper_dim(
    feature: Mapping[str, Any], key: str, requested: int | str | None
) -> int | None:
    """Find the gripper's dimension in an action by name, or check the one asked for.

    `feature` is the column's entry in `meta/info.json`, with `shape` and `names`.

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
            f"its name, found {len(found)} among {_described_names(feature)}; name it with "
            f"--gripper_dim (0 to {num_dims - 1}), or --gripper_dim {NO_GRIPPER} for a robot "
            "without one"
        )
    return found[0]


def _described_names(feature: Mapping[str, Any]) -> str:
    """Say what names a column has, and where they are not one for each dimension."""
    names, num_dims = feature.get("names"), math.prod(feature["shape"])
    found = dimension_names(names, num_dims)
    told = f"{names}, which is not one name for each" if names else "no names"
    return f"{told} of its {num_dims} dimensions" if found is None else str(found)


def find_position_dims(
    feature: Mapping[str, Any], key: str, requested: Sequence[int] | None
) -> tuple[int, int, int]:
    """Find the hand's position in a state by the dimensions' names, or check those asked for.

    `x`, `hand_y` and `ee.z` name positions; joint angles, rotations and velocities are none, and
    what has no names may be anything. `feature` is as for `find_gripper_dim`.

    Raises:
        InvalidInputError: those asked for do not exist; or none are, and the names do not tell
            exactly one position.
    """
    num_dims = math.prod(feature["shape"])
    if requested is not None:
        if len(set(requested)) != 3 or not all(0 <= dim < num_dims for dim in requested):
            raise InvalidInputError(
                f"--position_dims {' '.join(map(str, requested))}: expected three different "
                f"dimensions of column {key}, 0 to {num_dims - 1}"
            )
        return (requested[0], requested[1], requested[2])
    found = _named_positions(dimension_names(feature.get("names"), num_dims) or [])
    if len(found) != 1:
        raise InvalidInputError(
            f"which dimensions of column {key} are the hand's position? Expected one x, y and z "
            f"among their names, found {len(found)} in {_described_names(feature)}; name them with "
            "--position_dims, height last, as in --position_dims 0 1 2 (joint angles are no "
            "position), or another column with --state_key"
        )
    return found[0]


def _named_positions(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return the dimensions of each x, y and z whose names are alike otherwise."""
    groups: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for dim, name in enumerate(names):
        words = re.findall(r"[^\W_]+", name.lower())
        axes = [word for word in words if word in ("x", "y", "z", "w")]
        others = tuple(word for word in words if word not in axes)
        if len(axes) == 1 and not any(map(_NO_POSITION.match, others)):
            groups[others].append((axes[0], dim))
    found = []
    for group in groups.values():
        dims = dict(group)
        # With a w it is a quaternion; twice the same name is not clear.
        if sorted(axis for axis, _ in group) == ["x", "y", "z"]:
            found.append((dims["x"], dims["y"], dims["z"]))
    return found
