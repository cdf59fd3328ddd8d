"""What an experiment asks: its contrasts, their margins, and how many seeds may answer them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from world_modality.arms import ARMS
from world_modality.statistics.sequential import Margin, SeedPlan
from world_modality.system.atomic import write_json
from world_modality.system.errors import InvalidInputError, MissingFileError

MeasureName = Literal["success", "action_error"]
Role = Literal["question", "positive control", "placebo"]
_ROLES: Mapping[str, Role] = {
    "oracle": "positive control",
    "privileged": "positive control",
    "placebo": "placebo",
    "shuffled": "placebo",
    "dummy": "placebo",
}
UNITS: Mapping[MeasureName, str] = {
    "success": "points of success",
    "action_error": "% of action error",
}
USUAL_MARGINS: Mapping[MeasureName, float] = {"success": 3.0, "action_error": 5.0}
"""Differences that do not matter, where an experiment names no margin of its own."""


@dataclass(frozen=True)
class PlannedContrast:
    """Two arms, what they are compared by, and where their runs are.

    Attributes:
        first: the arm under test, or the label of a variant of it (`Design.variants`).
        second: its reference, the same way.
        measure: the success rate in closed loop, or the action error of held-out episodes.
        margin: up to which a difference does not matter, in the unit that `UNITS` names.
        first_cell: folder of the first arm's cell, from the design's folder on, with `{seed}`.
        second_cell: of the second arm's.
        role: a positive control's first arm has to be better, a placebo's must not be; both say
            whether the experiment can find anything, and are no answers.
    """

    first: str
    second: str
    measure: MeasureName
    margin: float
    first_cell: str
    second_cell: str
    role: Role = "question"

    @property
    def pair(self) -> str:
        """`first − second`."""
        return f"{self.first} − {self.second}"

    @property
    def name(self) -> str:
        """The pair and the measure, which together are unique within a design."""
        return f"{self.pair} ({self.measure.replace('_', ' ')})"

    @property
    def scale(self) -> Margin:
        """The margin on the scale of the estimates: shares, or logarithms of a ratio of errors."""
        share = self.margin / 100
        if self.measure == "success":
            return Margin(-share, share, of_counts=True)
        return Margin(math.log(1 - share), math.log(1 + share), lower_is_better=True)


@dataclass(frozen=True)
class Design:
    """The contrasts of an experiment and the seeds that may answer them.

    Attributes:
        plan: the looks and their price.
        contrasts: all that share the price.
        trained_with: all else that has to stay as it is once the first look was taken, by the name
            that the experiment file gives it.
        variants: arm and flags of each label that is not an arm's name.
    """

    plan: SeedPlan
    contrasts: tuple[PlannedContrast, ...]
    trained_with: Mapping[str, Any]
    variants: Mapping[str, str] = field(default_factory=dict)

    @property
    def margins(self) -> dict[str, Margin]:
        """Each contrast's margin by its name, on the scale of the estimates."""
        return {one.name: one.scale for one in self.contrasts}

    def write(self, path: Path) -> None:
        """Keep it beside what it is about."""
        write_json(path, asdict(self))

    def changes(self, other: "Design") -> list[str]:
        """Say in what another design differs, one text a part."""
        mine, theirs = (
            {**asdict(one.plan), **_by_name(one.contrasts), **one.trained_with}
            for one in (self, other)
        )
        return [
            f"{name} is {_shown(theirs.get(name))} and was {_shown(mine.get(name))}"
            for name in {**mine, **theirs}
            if _shown(mine.get(name)) != _shown(theirs.get(name))
        ]


def usual_role(arm: str) -> Role:
    """Return what a contrast of this first arm is for, by the control that the arm is."""
    return _ROLES.get(ARMS[arm].control, "question") if arm in ARMS else "question"


def read_design(path: Path) -> Design:
    """Read what `Design.write` wrote.

    Raises:
        MissingFileError: there is no such file.
        InvalidInputError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Design(
            plan=SeedPlan(**content["plan"]),
            contrasts=tuple(PlannedContrast(**one) for one in content["contrasts"]),
            trained_with=content["trained_with"],
            variants=content.get("variants", {}),
        )
    except FileNotFoundError as error:
        raise MissingFileError(
            f"no design {path}; python -m world_modality.experiment writes it at its first look"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{path} is damaged ({error}); delete it, and the experiment writes it again"
        ) from error


def _by_name(contrasts: tuple[PlannedContrast, ...]) -> dict[str, str]:
    return {
        f"contrast {one.name}": f"within {one.margin:g} {UNITS[one.measure]}" for one in contrasts
    }


def _shown(value: Any) -> str:
    if value is None:
        return "not there"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
