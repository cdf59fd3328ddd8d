"""Flags that say which columns of a recording hold what, shared by the stages that score events."""

from dataclasses import dataclass
from typing import Literal

from coc_vla.events.hand_axes import HandAxes, Side
from coc_vla.events.recorded import EventKeys


@dataclass(frozen=True, kw_only=True)
class EventFlags:
    """Where a recording's hand and gripper stand; give what coc_generation was given."""

    state_key: str = "observation.state"
    """Column with the hand's position."""
    action_key: str = "action"
    """Column of actions."""
    gripper_dim: int | Literal["none"] | None = None
    """Dimension of the action that commands the gripper; found by its name where it has one. none
    for a robot without a gripper."""
    gripper_commands: tuple[float, float] = (-1.0, 1.0)
    """The command that opens the gripper and the one that closes it."""
    position_dims: tuple[int, int, int] | None = None
    """Dimensions of the state that are the hand's position; found by their names."""
    position_axes: tuple[Side, Side] | None = None
    """Which way the first two of them grow, as the robot sees it, as for coc_generation; without
    it left, right, forward and back are not scored."""

    @property
    def event_keys(self) -> EventKeys:
        """Which columns hold what."""
        return EventKeys(
            state=self.state_key,
            action=self.action_key,
            gripper_dim=self.gripper_dim,
            gripper_commands=self.gripper_commands,
            position_dims=self.position_dims,
            axes=HandAxes.of(self.position_axes),
        )
