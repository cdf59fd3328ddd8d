"""The step that turns the frames' texts into the cache's array `instruction_embeddings`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from world_modality.cache.contract import Cache, sha256_of_json
from world_modality.cache.writer import CacheWriter
from world_modality.encode.text_encoder import TextEncoder
from world_modality.encode.text_similarity import text_advice, text_cosines
from world_modality.precompute.cache_steps import done_step, is_done, require_space
from world_modality.precompute.instruction_texts import InstructionTexts, dataset_section
from world_modality.system.errors import InvalidInputError

ARRAY = "instruction_embeddings"


def embed_instructions(
    cache: Cache, texts: InstructionTexts, encoder: TextEncoder, batch_size: int
) -> bool:
    """Encode each distinct text once and write its row for every frame.

    Args:
        cache: where the rows and the manifest's section `text` go.
        texts: every frame's text.
        encoder: of the texts.
        batch_size: texts at a time.

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
        "cosines": text_cosines(table),
        "advice": text_advice(texts.distinct, table),
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
