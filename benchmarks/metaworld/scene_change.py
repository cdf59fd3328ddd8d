"""What a scene change is: what is drawn besides a task's own scene, frame by frame.

A change is a function of the frame's number and the layout's seed. Its markers exist in the image
alone, not in the simulator's model: nothing collides with them, and physics is the same to the bit.
A kind is a subclass in a file of its own and a row in `SCENE_CHANGES` of `scene_flags`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from benchmarks.rendering import Marker
from benchmarks.suite import Expert
from world_modality.system.errors import InvalidInputError

Position = tuple[float, float, float]
SceneChangeT = TypeVar("SceneChangeT", bound="SceneChange")


@dataclass(frozen=True)
class SceneChange:
    """A change of the scene; each kind is a frozen dataclass of this, of numbers and strings.

    Attributes:
        name: in the record, and of the flag that asks for it.
        tasks: the tasks that it is for; empty for all.
        hidden_sites: marks of MuJoCo's model that are not drawn.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ()
    hidden_sites: ClassVar[tuple[str, ...]] = ()

    @property
    def min_steps(self) -> int:
        """Steps that an episode needs for the change to mean anything."""
        return 1

    def markers(self, frame: int, layout_seed: int) -> Sequence[Marker]:
        """Return what is drawn in a frame of an episode, counted from 0."""
        raise NotImplementedError

    def goal(self, layout_seed: int) -> np.ndarray | None:
        """Return the goal's position [3] in m, or None where the task's own stays."""
        return None

    def expert(self, observe: Callable[[], np.ndarray], layout_seed: int) -> Expert | None:
        """Return who demonstrates an episode, or None where the task's own expert does.

        Args:
            observe: returns MetaWorld's own observation, which begins with the hand's position.
            layout_seed: the episode's.
        """
        return None

    def evaluated_layout(self, layout_seed: int, episode: int) -> int:
        """Return this layout's seed, or the next one that suits an evaluation's episode."""
        return layout_seed

    def note(self) -> str | None:
        """Return what a reader of success rates has to know, if anything."""
        return None

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON holds them (tuples as lists)."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_record(cls: type[SceneChangeT], record: Mapping[str, Any]) -> SceneChangeT:
        """Rebuild the settings that `record` wrote.

        Raises:
            InvalidInputError: a setting is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        if set(record) != known:
            raise InvalidInputError(
                f"a {cls.name} has the settings {sorted(known)}, the record has {sorted(record)}"
            )
        settings = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        return cls(**settings)
