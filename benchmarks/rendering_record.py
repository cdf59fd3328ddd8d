"""How a simulator's images are made, as a record that travels with recordings and checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from world_modality.errors import InvalidInputError

# Not `Self`, which the run-time check of signatures does not take in a method.
RenderingT = TypeVar("RenderingT", bound="RenderingRecord")


@dataclass(frozen=True)
class RenderingRecord:
    """Rendering settings; each suite's class adds its own."""

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON holds them (tuples as lists)."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_record(cls: type[RenderingT], record: Mapping[str, Any]) -> RenderingT:
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
