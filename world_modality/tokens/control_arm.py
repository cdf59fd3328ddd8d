"""Control arms: the same training, with the tokens taken away from their frames in one way each.

- `B_placebo`: the future loss asks for tokens shuffled in time within the episode. Rules out that
  any auxiliary loss helps.
- `C_dummy`: one code stands in the place of every `w_t`. Rules out that parameters and the length
  of the sequence help.
- `C_shuffled`: another frame's token of the same task is read. Rules out that any token of the task
  helps.
- `C_oracle`: a true future token, `w_{t+K·stride}`, is read: the most that it could give.
"""

from collections.abc import Mapping
from typing import Any, Literal

from world_modality.system.errors import InvalidInputError

ControlName = Literal["none", "placebo", "dummy", "shuffled", "oracle"]
CONTROLLED_ARM: dict[ControlName, str] = {
    "placebo": "B",
    "dummy": "C",
    "shuffled": "C",
    "oracle": "C",
}
DUMMY_TOKEN = 0


def stored_control(train_config: Mapping[str, Any]) -> ControlName:
    """Return the control that a checkpoint was trained with; older checkpoints have none."""
    name: ControlName = train_config.get("token_control", "none")
    return name


def require_controlled_arm(control: ControlName, model_type: str) -> None:
    """Check that a control belongs to an arm.

    Raises:
        InvalidInputError: it is another arm's.
    """
    if control != "none" and CONTROLLED_ARM[control] != model_type:
        raise InvalidInputError(
            f"--token_control {control} is a control of model type {CONTROLLED_ARM[control]}, not "
            f"of {model_type}"
        )
