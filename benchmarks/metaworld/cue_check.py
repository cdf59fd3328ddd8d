"""What a recording's images tell of the wanted goal: all while the cue is seen, nothing after it.

Measured as a policy's world token would tell it: pixel-pca embeddings of the first camera's frames,
k-means over all of them, and the mutual information of the tokens with the goal's side (its octant
where the goal is anywhere). A cue that is lost in a codebook that the arm's motion fills shows here
before anything is trained; so does a cue that leaks into later frames.
"""

from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.demos.episode import DemoEpisode
from benchmarks.demos.png_images import PngImages
from benchmarks.metaworld.cameras import IMAGE_KEY
from benchmarks.metaworld.cue import Cue
from world_modality.encode.pixel_pca import PixelPCA, area_average
from world_modality.encode.vision_encoders import VisionEncoderFlags
from world_modality.source.episodes import Episodes
from world_modality.tokens.codebook import CodebookFlags
from world_modality.tokens.kmeans import KMeans
from world_modality.tokens.statistics import Dependence, task_dependence

MAX_EPISODES = 400
"""Episodes that are kept for it, 3 kB a frame."""
_IMAGE_SIZE = 32
_NUM_COMPONENTS = 64
_NUM_TOKENS = 64
_TOLD_SHARE = 0.5
_LEAKED_SHARE = 0.1


class CueCheck:
    """Gathers a recording's frames and measures what their tokens tell."""

    def __init__(self, cue: Cue) -> None:
        """Take the cue that is recorded."""
        self._cue = cue
        self._images: list[np.ndarray] = []
        self._labels: list[int] = []

    def add(self, episode: DemoEpisode, initial_state: int) -> None:
        """Take an episode that was recorded in a layout."""
        if len(self._images) == MAX_EPISODES:
            return
        column = episode.columns[IMAGE_KEY]
        images = column.decode() if isinstance(column, PngImages) else column
        size = min(_IMAGE_SIZE, *images.shape[1:3])
        small = np.rint(255 * area_average(images, size)).astype(np.uint8)
        self._images.append(small.reshape(-1, size, size, 3))
        self._labels.append(self._cue.label(initial_state))

    @cached_property
    def told(self) -> tuple[Dependence, Dependence]:
        """What tokens tell of the goal while the cue is seen, and from then on to the turn."""
        tokens, cue = self._tokens(), self._cue
        return (
            self._dependence(tokens, 0, cue.frames),
            self._dependence(tokens, cue.frames, cue.common_frames),
        )

    def record(self) -> dict[str, Any]:
        """Return the numbers as JSON holds them."""
        seen, later = (
            {
                name: None if value is None else round(value, 4)
                for name, value in asdict(one).items()
            }
            for one in self.told
        )
        return {
            "cue": {
                "num_episodes": len(self._images),
                "num_tokens": _NUM_TOKENS,
                "cue_frames": seen,
                "later_frames": later,
            }
        }

    def text(self) -> str:
        """Say what was found, and what mends it."""
        cue, (seen, later) = self._cue, self.told
        what = "side" if cue.goals == "side" else "octant"
        lines = [
            f"cue: the goal's {what} has {seen.label_bits:.2f} bits; of these a world token "
            f"(pixel-pca, {_NUM_TOKENS} codes) tells {seen.information_bits:.2f} in the frames 0 "
            f"to {cue.frames - 1}, which show it ({seen.shuffled_bits:.2f} by chance), and "
            f"{later.information_bits:.2f} in the frames {cue.frames} to {cue.common_frames - 1} "
            f"({later.shuffled_bits:.2f} by chance)"
        ]
        if seen.excess_bits < _TOLD_SHARE * seen.label_bits:
            lines.append(
                "note: the token tells less than half of that beyond chance; give a --camera that "
                "sees the cue better, or train on a codebook of more tokens"
            )
        if later.excess_bits > _LEAKED_SHARE * later.label_bits:
            lines.append(
                "note: frames after the cue tell the goal, too; record more episodes to see "
                "whether that is chance"
            )
        return "\n".join(lines)

    def _tokens(self) -> list[np.ndarray]:
        """Return each episode's world tokens."""
        frames = np.concatenate(self._images)
        num_components = min(_NUM_COMPONENTS, len(frames))
        flags = VisionEncoderFlags(
            pixel_pca_size=frames.shape[1], pixel_pca_components=num_components
        )
        embeddings = PixelPCA.fit(flags, [frames], len(frames)).encode(frames)
        codebook = CodebookFlags(vq_num_tokens=min(_NUM_TOKENS, len(frames)))
        tokens = KMeans.fit(codebook, embeddings).encode(embeddings)
        return np.split(tokens, np.cumsum([len(images) for images in self._images])[:-1])

    def _dependence(self, tokens: list[np.ndarray], first: int, end: int) -> Dependence:
        parts = [one[first:end] for one in tokens]
        ends = np.cumsum([len(part) for part in parts])
        starts = np.concatenate(([0], ends[:-1]))
        ids = np.arange(len(parts))
        episodes = Episodes(starts, ends, ids, np.array(self._labels))
        return task_dependence(np.concatenate(parts), episodes, ids.tolist(), _NUM_TOKENS)
