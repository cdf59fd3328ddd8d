"""How LIBERO's images are made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from world_modality.errors import InvalidInputError


@dataclass(frozen=True)
class Rendering:
    """How images are made. A policy must be rolled out with the rendering it was trained on."""

    camera: str = "agentview"
    wrist_camera: str = "robot0_eye_in_hand"
    flip_axes: tuple[int, ...] = (0, 1)
    image_size: int = 256
    offsamples: int = 0
    shadows: bool = False
    reflections: bool = False
    gl_backend: str = "egl"

    @classmethod
    def lerobot(cls) -> "Rendering":
        """Return the rendering of LeRobot's public data: everything as LIBERO has it."""
        return cls(offsamples=4, shadows=True, reflections=True)

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON holds them (tuples as lists)."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Rendering":
        """Rebuild the settings that `record` wrote.

        Raises:
            InvalidInputError: a setting is missing or unknown.
        """
        known = set(cls.__dataclass_fields__)
        if set(record) != known:
            raise InvalidInputError(
                f"a rendering has the settings {sorted(known)}, the record has {sorted(record)}"
            )
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        return cls(**settings)
