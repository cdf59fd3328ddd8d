"""The simulator's true state as a token: what a positive control reads instead of what is seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Int

from world_modality.cache.contract import Cache, require_arrays
from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.kmeans import KMeansFlags, assign_world_tokens, fit_centroids

ARRAY = "environment_states"
# A number that varies less than this share of the one that varies most counts as standing still:
# divided by its own spread, the jitter of an object at rest would be as loud as a motion.
STILL_SHARE = 1e-3
_PREFIX = "privileged_"


@dataclass(frozen=True)
class PrivilegedCodebook:
    """k-means over the standardised true state of the training frames.

    Attributes:
        mean: of each number over the training frames.
        scale: its standard deviation, or `STILL_SHARE` of the largest one where that is more.
        centroids: in the standardised space.
    """

    mean: Float32[np.ndarray, " O"] = field(repr=False)
    scale: Float32[np.ndarray, " O"] = field(repr=False)
    centroids: Float32[np.ndarray, "V O"] = field(repr=False)

    @classmethod
    def fit(cls, states: Float[np.ndarray, "N O"], num_tokens: int) -> "PrivilegedCodebook":
        """Fit V centroids to the true states of training frames; the same for every seed.

        Raises:
            InvalidInputError: a number is not finite, or there are fewer frames than tokens.
        """
        if not np.isfinite(states).all():
            raise InvalidInputError(f"{ARRAY} holds NaN or infinity; record the dataset again")
        if len(states) < num_tokens:
            raise InvalidInputError(
                f"--token_control privileged quantises the true state of {len(states)} training "
                f"frames with the cache's {num_tokens} tokens, which is more; record more episodes"
            )
        wide = states.astype(np.float64)
        mean, spread = wide.mean(axis=0), wide.std(axis=0)
        # A state in which nothing moves at all has one code.
        floor = STILL_SHARE * spread.max() if spread.max() > 0 else 1.0
        scale = np.maximum(spread, floor).astype(np.float32)
        unfitted = cls(mean.astype(np.float32), scale, np.zeros((0, len(mean)), np.float32))
        rows = unfitted._standardised(states)
        found = fit_centroids(rows, num_tokens, KMeansFlags(), seed=0, device="cpu")
        return cls(unfitted.mean, scale, found.centroids)

    @classmethod
    def of_cache(cls, cache: Cache) -> "PrivilegedCodebook":
        """Fit it to the training episodes of a cache, with as many tokens as its codebook has.

        Raises:
            MissingFileError, InvalidInputError: the cache does not have the true state.
        """
        states = _states(cache)
        arrays = require_arrays(cache, ("episode_index", "task_index"))
        episodes = Episodes.from_frames(
            arrays["episode_index"], arrays["task_index"], cache.episode_ids
        )
        frames = episodes.frames_of(cache.manifest["split"]["train"])
        return cls.fit(states[frames], cache.num_tokens)

    def encode(self, states: Float[np.ndarray, "N O"]) -> Int[np.ndarray, " N"]:
        """Return the token of each true state.

        Raises:
            InvalidInputError: another dimension than the one it was fitted to, or a number that is
                not finite.
        """
        if states.shape[1] != len(self.mean):
            raise InvalidInputError(
                f"the true state has {states.shape[1]} numbers, but the policy was trained on "
                f"{len(self.mean)}; roll it out in the suite that it was trained on"
            )
        return assign_world_tokens(self._standardised(states), self.centroids)

    def tokens(self, cache: Cache) -> Int[np.ndarray, " N *W"]:
        """Return the tokens of a cache's frames; where a frame has several slots, each the same.

        Raises:
            As `of_cache`.
        """
        return spread_over_slots(self.encode(np.asarray(_states(cache))), cache.num_slots)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint keeps, by name."""
        return {f"{_PREFIX}{name}": array for name, array in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "PrivilegedCodebook":
        """Return what a checkpoint of these arrays keeps.

        Raises:
            InvalidInputError: it keeps none.
        """
        names = ("mean", "scale", "centroids")
        if any(f"{_PREFIX}{name}" not in arrays for name in names):
            raise InvalidInputError(
                "the checkpoint was trained with --token_control privileged, but lacks the "
                "codebook of the true state; train again"
            )
        return cls(*(arrays[f"{_PREFIX}{name}"] for name in names))

    def _standardised(self, states: Float[np.ndarray, "N O"]) -> Float32[np.ndarray, "N O"]:
        return ((states - self.mean) / self.scale).astype(np.float32)


def spread_over_slots(tokens: Int[np.ndarray, " N"], num_slots: int) -> Int[np.ndarray, " N *W"]:
    """Give each of a frame's W slots the frame's one token."""
    return tokens if num_slots == 1 else np.repeat(tokens[:, None], num_slots, axis=1)


def _states(cache: Cache) -> Float[np.ndarray, "N O"]:
    if not cache.has(ARRAY):
        raise InvalidInputError(
            f"--token_control privileged reads the simulator's true state, but {cache.folder} has "
            f"no {ARRAY}: its recording has no observation.environment_state. Record one that has "
            "it (python -m benchmarks.metaworld.collect_demos), or name its column with "
            "--environment_state_key of python -m world_modality.precompute_world_tokens"
        )
    return require_arrays(cache, (ARRAY,))[ARRAY]
