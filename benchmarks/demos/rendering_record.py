"""How a simulator's images are made: what renders, and the record that recordings carry of it."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from world_modality.system.errors import InvalidInputError, UserError

# Not `Self`, which the run-time check of signatures does not take in a method.
RenderingT = TypeVar("RenderingT", bound="RenderingRecord")
RENDERING_ERRORS = (ImportError, AttributeError, RuntimeError, ValueError)
"""What MuJoCo and PyOpenGL raise where there is no way to render: an AttributeError on None where
libEGL is not there, a ValueError where MUJOCO_EGL_DEVICE_ID is no number."""


def gl_backend() -> str:
    """Return the backend MuJoCo is told to render with: `MUJOCO_GL`, or EGL where it is unset."""
    return os.environ.get("MUJOCO_GL") or "egl"


def _pass_over_half_made_renderer(unraisable: Any) -> None:
    # MuJoCo's destructors trip over what its constructors did not come to.
    if not str(getattr(unraisable.object, "__module__", "")).startswith("mujoco"):
        sys.__unraisablehook__(unraisable)


def rendering_failed(error: Exception) -> UserError:
    """Build the error for a machine where MuJoCo cannot render off screen, with what mends it."""
    sys.unraisablehook = _pass_over_half_made_renderer
    advice = "unset MUJOCO_GL"
    device = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if device is not None:
        advice += (
            f" and MUJOCO_EGL_DEVICE_ID={device} (it counts EGL's own devices from 0, whatever "
            "CUDA_VISIBLE_DEVICES says)"
        )
    platform = os.environ.get("PYOPENGL_PLATFORM")
    if platform not in (None, gl_backend()):  # MuJoCo sets it to what it renders with
        advice += f" and PYOPENGL_PLATFORM={platform}"
    return UserError(
        f"MuJoCo cannot render off screen with MUJOCO_GL={gl_backend()} ({error}); {advice} and "
        "install EGL, on Debian and Ubuntu: apt-get install libegl1 libgles2 libgl1-mesa-dri"
    )


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
