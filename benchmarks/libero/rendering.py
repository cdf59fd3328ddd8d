"""How LIBERO's images are made."""

from dataclasses import dataclass

from benchmarks.demos.rendering_record import RenderingRecord


@dataclass(frozen=True)
class Rendering(RenderingRecord):
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
