"""MP4s of episodes: `<folder>/<task>/episode_003_success.mp4`, in H.264, which browsers play."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from benchmarks.suite import EpisodeSpec, Observation
from world_modality.system.atomic import partial_path, publish
from world_modality.system.errors import UserError, missing_key

_ENCODERS = ("libx264", "libopenh264")


@dataclass(frozen=True)
class VideoFolder:
    """Where a checkpoint's videos go, and what they show.

    Attributes:
        folder: with a folder a task.
        image_keys: the cameras, side by side.
        fps: frames per second.
        videos_per_task: the episodes below this number are filmed; None films all.
    """

    folder: Path
    image_keys: tuple[str, ...]
    fps: int
    videos_per_task: int | None = None

    def begin(self, episode: EpisodeSpec) -> "EpisodeVideo | None":
        """Return the video of an episode that begins; None if it is not filmed."""
        if self.videos_per_task is not None and episode.episode >= self.videos_per_task:
            return None
        return EpisodeVideo(self, episode)


class EpisodeVideo:
    """A video that is written while its episode runs, and gets its name when it is whole."""

    def __init__(self, videos: VideoFolder, episode: EpisodeSpec) -> None:
        self._videos = videos
        self._stem = videos.folder / episode.task / f"episode_{episode.episode:03d}"
        self._partial = partial_path(self._stem.with_suffix(".mp4"))
        self._container: Any = None
        self._stream: Any = None

    def add(self, observation: Observation) -> None:
        """Append what the cameras saw.

        Raises:
            MissingKeyError: there is no such camera in the observation.
            UserError: no H.264 encoder is installed.
        """
        import av

        for key in self._videos.image_keys:
            if key not in observation:
                raise missing_key("image", key, observation, "the observation")
        image = _even(_side_by_side([observation[key] for key in self._videos.image_keys]))
        if self._container is None:
            self._open(*image.shape[:2])
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def finish(self, success: bool) -> Path:
        """Write what is left, and name the video after the outcome."""
        self._container.mux(self._stream.encode())
        self._container.close()
        outcome = "success" if success else "failure"
        path = self._stem.with_name(f"{self._stem.name}_{outcome}.mp4")
        publish(self._partial, path)
        return path

    def discard(self) -> None:
        """Remove the unfinished video."""
        if self._container is not None:
            self._container.close()
        self._partial.unlink(missing_ok=True)

    def _open(self, height: int, width: int) -> None:
        import av

        encoder = next((name for name in _ENCODERS if name in av.codecs_available), None)
        if encoder is None:
            raise UserError(
                f"videos need an H.264 encoder, and av {av.__version__} has none of "
                f"{', '.join(_ENCODERS)}; pip install --force-reinstall av, or leave out "
                "--save_videos"
            )
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(
            str(self._partial), "w", format="mp4", options={"movflags": "faststart"}
        )
        self._stream = self._container.add_stream(encoder, rate=Fraction(self._videos.fps))
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"  # the one that every browser decodes
        self._stream.codec_context.thread_count = 1  # each environment has one core


def remove_videos(folder: Path) -> None:
    """Delete the videos of earlier rollouts, and nothing else that may lie there."""
    for path in folder.rglob("episode_*.mp4*"):
        path.unlink()


def _side_by_side(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
) -> UInt8[np.ndarray, "height width 3"]:
    # Lower ones stand on black.
    height = max(len(image) for image in images)
    return np.concatenate(
        [np.pad(image, ((0, height - len(image)), (0, 0), (0, 0))) for image in images], axis=1
    )


def _even(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "even_h even_w 3"]:
    # H.264 with halved colour has even sizes only.
    height, width = image.shape[:2]
    return np.ascontiguousarray(image[: height - height % 2, : width - width % 2])
