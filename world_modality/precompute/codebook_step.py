"""The codebook step: a quantiser fitted to stored embeddings, then one token for each frame."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from world_modality.cache.contract import Cache
from world_modality.cache.writer import CacheWriter
from world_modality.precompute.cache_steps import (
    done_step,
    installed_versions,
    is_done,
    require_space,
)
from world_modality.precompute.inputs import PrecomputeInputs
from world_modality.tokens.codebook import QUANTISERS, CodebookFlags

BLOCK_ROWS = 2_048
# More frames than memory holds may be fitted; float16's rounding is seen on these.
ROUNDING_FRAMES = 65_536


class StoredRows:
    """Some frames of the embeddings on the disk, in float16; `Cache.load` has checked the file."""

    def __init__(self, path: Path, frames: Int[np.ndarray, " N"]) -> None:
        self.path, self.frames = path, frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
        """Copy rows; mapped again for every block, for pages that were read stay resident."""
        frames = self.frames[indices]
        blocks = [
            np.load(self.path, mmap_mode="r", allow_pickle=False)[
                frames[start : start + BLOCK_ROWS]
            ]
            for start in range(0, len(frames), BLOCK_ROWS)
        ]
        return np.concatenate(blocks)


def codebook_step(
    cache: Cache, inputs: PrecomputeInputs, flags: CodebookFlags, device: str
) -> bool:
    """Fit the codebook and assign the tokens; return whether that was done already.

    Tokens are assigned from the float16 embeddings on the disk, so that anybody can compute them
    again.

    The embeddings have been checked or written just before.

    Raises:
        InvalidInputError: the disk or the memory is too small.
    """
    identity = {
        "embeddings": cache.manifest["arrays"]["embeddings"]["sha256"],
        "codebook": flags.codebook_settings,
        "split": inputs.split_section,
    }
    kind = flags.quantiser
    if is_done(cache, "codebook", identity, (*kind.array_names, "world_tokens")):
        return True
    num_frames = inputs.source.num_frames
    require_space(cache, {"world_tokens": (num_frames,)})
    path = cache.array_path("embeddings")
    sample = StoredRows(path, inputs.training_sample(flags.max_fit_frames, flags.seed))
    print(f"fitting {flags.vq_num_tokens} codes to {len(sample)} training frames")
    quantiser = kind.fit(flags, sample, device)
    writer = CacheWriter(cache, "codebook", identity)
    for name, array in quantiser.arrays.items():
        writer.put(name, array)
    stored = StoredRows(path, np.arange(num_frames))
    for start in range(writer.open("world_tokens", (num_frames,)), num_frames, BLOCK_ROWS):
        block = np.arange(start, min(start + BLOCK_ROWS, num_frames))
        writer.write(start, {"world_tokens": quantiser.encode(stored[block])})
    in_training = inputs.episodes.frame_mask(inputs.split.train)
    codebook = {
        **flags.codebook_settings,
        "num_tokens": quantiser.num_codes,
        "fit_frames": len(sample),
        "fitted_on": "training episodes",
        **quantiser.fit_record,
        "num_used": len(np.unique(writer.read_back("world_tokens")[in_training])),
        "rounding_to_spread": _rounding(sample),
    }
    sections = {
        "codebook": codebook,
        "split": inputs.split_section,
        "steps": done_step("codebook", identity),
        "versions": installed_versions(),
    }
    others = {name for other in QUANTISERS.values() for name in other.array_names}
    stale = others - set(kind.array_names)
    writer.publish(sections, tuple(name for name in sorted(stale) if cache.has(name)))
    return False


def _rounding(sample: StoredRows) -> float:
    """Return float16's rounding over the spread of the fitted embeddings."""
    num_seen = min(len(sample), ROUNDING_FRAMES)
    return rounding_to_spread(sample[np.linspace(0, len(sample) - 1, num_seen).astype(np.int64)])


def rounding_to_spread(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Return float16's rounding error over the embeddings' spread, both as root mean squares.

    The error of rounding to a grid of spacing u is u / sqrt(12); the spread is the distance to the
    mean. Near 1 the stored embeddings are mostly rounding; below 0.01 rounding does not matter.
    """
    stored = np.asarray(embeddings, dtype=np.float16)
    rounding = np.spacing(stored).astype(np.float64) / np.sqrt(12)
    spread = stored.astype(np.float64) - stored.mean(axis=0, dtype=np.float64)
    total = float(np.sqrt(np.mean(spread**2)))
    return float(np.sqrt(np.mean(rounding**2))) / total if total > 0 else float("inf")
