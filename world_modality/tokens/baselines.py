"""What world-token predictors without a model achieve: copying, and counting successors."""

import numpy as np
from jaxtyping import Int
from scipy import sparse

from world_modality.source.episodes import Episodes

# Rows of the V x V score table that are ranked at a time; 256 rows of V = 16,384 are 32 MB.
_ROWS_AT_A_TIME = 256


def frames_with_future(episodes: Episodes, ids: list[int], steps: int) -> Int[np.ndarray, " M"]:
    """Return the frames t of these episodes whose frame t + steps is in the same episode."""
    frames = episodes.frames_of(ids)
    with_future: np.ndarray = frames[frames + steps < episodes.ends[episodes.of_frame[frames]]]
    return with_future


class BigramBaseline:
    """Predicts w[t+k] from w[t] by how often each successor was seen k frames later in training.

    Equal counts are ordered by: the token itself first (a copy), then the token more frequent in
    training. A token never seen in training therefore predicts itself.

    Args:
        sources: tokens w[t] of the training pairs.
        targets: tokens w[t+k] of the same pairs.
        num_tokens: codebook size V.
    """

    def __init__(
        self, sources: Int[np.ndarray, " M"], targets: Int[np.ndarray, " M"], num_tokens: int
    ) -> None:
        ones = np.ones(len(sources), dtype=np.int64)
        shape = (num_tokens, num_tokens)
        self._counts = sparse.coo_matrix((ones, (sources, targets)), shape=shape).tocsr()
        marginal = np.bincount(targets, minlength=num_tokens)
        self._tie_break = 0.4 * marginal / max(1, marginal.sum())

    @classmethod
    def fit(
        cls,
        tokens: Int[np.ndarray, " N"],
        episodes: Episodes,
        ids: list[int],
        steps: int,
        num_tokens: int,
        *,
        changed_only: bool = False,
    ) -> "BigramBaseline":
        """Count the pairs (w[t], w[t+steps]) of these episodes, none across an episode's end.

        With `changed_only` the pairs whose tokens differ: where to, given that the token changes.
        """
        frames = frames_with_future(episodes, ids, steps)
        sources, targets = tokens[frames], tokens[frames + steps]
        if changed_only:
            moved = sources != targets
            sources, targets = sources[moved], targets[moved]
        return cls(sources, targets, num_tokens)

    def top(self, tokens: Int[np.ndarray, " M"], num_best: int) -> Int[np.ndarray, "M R"]:
        """Return the R likeliest successors of each token, best first (R = min(num_best, V))."""
        num_best = min(num_best, self._counts.shape[1])
        distinct, position = np.unique(tokens, return_inverse=True)
        ranked = np.empty((len(distinct), num_best), dtype=np.int32)
        for start in range(0, len(distinct), _ROWS_AT_A_TIME):
            rows = distinct[start : start + _ROWS_AT_A_TIME]
            # Counts are whole numbers, so 0.5 and 0.4 only ever order what is equal.
            scores = self._counts[rows].toarray() + self._tie_break
            scores[np.arange(len(rows)), rows] += 0.5
            ranked[start : start + len(rows)] = np.argsort(-scores, axis=1, kind="stable")[
                :, :num_best
            ]
        return ranked[position]
