"""What is predicted of the frames ahead beside their tokens: loaded, and compared frame by frame.

Each target is measured beside a predictor that knows nothing of the future: an embedding that stays
as it is, no change at all, the change token that is most frequent in training.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from world_modality.arms import WorldTarget
from world_modality.cache.change_codebook import ChangeCodebook
from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import Batch
from world_modality.policy.config import TrainConfig
from world_modality.policy.heads import future_is_inside
from world_modality.policy.network import WorldPolicy


def num_change_tokens(config: TrainConfig, cache: Cache) -> int:
    """Return the size of the codebook of changes; 0 where the run needs none.

    Raises:
        MissingFileError, InvalidInputError: it needs one, and the cache's does not fit.
    """
    if "change_token" not in config.futures:
        return 0
    return ChangeCodebook.of(cache, config.window).num_tokens


@dataclass(frozen=True)
class VectorErrors:
    """Errors of one target that is a vector, at M frames and K steps; 0 past the episode's end.

    Attributes:
        squared: of the policy, averaged over the dimensions, in training standard deviations
            squared.
        trivial_squared: of the vector that stays as it is, or of no change.
        cosine: between the policy's vector and the true one.
        trivial_cosine: likewise, of the trivial one.
        inside: which steps lie inside the episode.
    """

    squared: Float[np.ndarray, "M K"]
    trivial_squared: Float[np.ndarray, "M K"]
    cosine: Float[np.ndarray, "M K"]
    trivial_cosine: Float[np.ndarray, "M K"]
    inside: Bool[np.ndarray, "M K"]

    def metrics(self, target: str) -> dict[str, float]:
        """Return `val_…` over all steps: R² beyond the trivial vector, and the mean cosine."""
        found = {f"val_{target}_cosine": float(self.cosine.sum() / max(self.inside.sum(), 1))}
        if (trivial := float(self.trivial_squared.sum())) > 0:
            found[f"val_{target}_r2"] = 1 - float(self.squared.sum()) / trivial
        return found


def vector_errors(
    policy: WorldPolicy,
    target: WorldTarget,
    predicted: Float[Tensor, "B K D2"],
    batch: Batch,
    present: Float[Tensor, "B D2"],
) -> dict[str, Tensor]:
    """Return what `VectorErrors` holds, for one batch.

    Args:
        policy: whose statistics standardise the vectors.
        target: which.
        predicted: what the policy makes of it, standardised.
        batch: with the true vectors.
        present: pooled embeddings of the frames t, as cached.
    """
    raw = batch.vectors(target)
    no_change = target == "embedding_change"
    unmoved = torch.zeros_like(raw) if no_change else present[:, None].expand_as(raw)
    true, trivial = (policy.standardised(target, vectors) for vectors in (raw, unmoved))
    inside = future_is_inside(batch)
    found: dict[str, Tensor] = {"inside": inside}
    for prefix, vectors in (("", predicted.float()), ("trivial_", trivial)):
        cosine = functional.cosine_similarity(vectors, true, dim=-1)
        found[f"{prefix}squared"] = (vectors - true).square().mean(dim=-1) * inside
        found[f"{prefix}cosine"] = cosine * inside
    return found
