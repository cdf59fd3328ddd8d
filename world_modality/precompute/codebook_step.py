"""The codebook step: a quantiser fitted to stored embeddings, then the tokens of each frame."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from world_modality.cache.contract import Cache
from world_modality.cache.frame_shapes import ObservationShape
from world_modality.cache.writer import CacheWriter
from world_modality.precompute.cache_steps import (
    done_step,
    installed_versions,
    is_done,
    require_space,
)
from world_modality.precompute.inputs import PrecomputeInputs
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.codebook import QUANTISERS, CodebookFlags
from world_modality.tokens.quantiser import Quantiser
from world_modality.tokens.world_slots import (
    FIRST_SLOTS,
    WorldSlots,
    num_slot_vectors,
    require_cells,
    slot_vectors,
)
from world_modality.tokens.world_tokens import WorldTokeniser

BLOCK_ROWS = 2_048
# More frames than memory holds may be fitted; float16's rounding is seen on these.
ROUNDING_FRAMES = 65_536


class StoredRows:
    """Some frames of an array on the disk, in float16; `Cache.load` has checked the file.

    Args:
        path: of the array.
        frames: which of them; or which parts of frames, numbered through, where there are several.
        num_parts: how many parts a frame's P vectors are divided into, in their order.
    """

    def __init__(self, path: Path, frames: Int[np.ndarray, " N"], num_parts: int = 1) -> None:
        self.path, self.frames, self.num_parts = path, frames, num_parts

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B *P D"]:
        """Copy rows; mapped again for every block, for pages that were read stay resident."""
        frames = self.frames[indices]
        blocks = [
            self._mapped()[frames[start : start + BLOCK_ROWS]]
            for start in range(0, len(frames), BLOCK_ROWS)
        ]
        return np.concatenate(blocks)

    def _mapped(self) -> np.ndarray:
        array: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        if self.num_parts == 1:
            return array
        return array.reshape(-1, array.shape[1] // self.num_parts, array.shape[2])


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of some frames that are quantised, frame by frame, read as they are asked for.

    Attributes:
        rows: pooled embeddings, or the cells of each part of a frame that has a token.
        grid_size: of the cells of a view.
        slots: which vectors of a frame have tokens.
    """

    rows: StoredRows
    grid_size: int
    slots: WorldSlots

    @classmethod
    def of(cls, cache: Cache, frames: Int[np.ndarray, " N"], slots: WorldSlots) -> "StoredVectors":
        """Return the vectors of these frames of a cache."""
        shape = cache.observation_shape
        if slots == FIRST_SLOTS:
            return cls(StoredRows(cache.array_path("embeddings"), frames), 1, slots)
        num_parts = num_slot_vectors(shape, slots)
        parts = (frames[:, None] * num_parts + np.arange(num_parts)).ravel()
        rows = StoredRows(cache.array_path("view_embeddings"), parts, num_parts)
        return cls(rows, shape.grid_size, slots)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
        """Copy vectors; no cell of a frame is read that is not asked for."""
        rows = self.rows[indices]
        if self.slots == FIRST_SLOTS:
            return rows
        one_view = ObservationShape(rows.shape[-1], 1, self.grid_size)
        return slot_vectors(None, rows, one_view, self.slots)[:, 0]


def codebook_sample(
    inputs: PrecomputeInputs, flags: CodebookFlags, vectors_per_frame: int
) -> Int[np.ndarray, " N"]:
    """Draw the training frames that the codebook is fitted to.

    As many frames as hold no more vectors than `--vq_fit_frames`, so that neither memory nor time
    of the fit grow with the number of slots.
    """
    num_frames = max(1, flags.max_fit_frames // vectors_per_frame)
    return inputs.training_sample(num_frames, flags.seed)


def check_codebook(
    inputs: PrecomputeInputs, flags: CodebookFlags, cells: ObservationShape | None
) -> None:
    """Refuse a codebook that cannot be fitted to these frames, before any is embedded.

    Args:
        inputs: the dataset.
        flags: of the codebook.
        cells: that will be kept of a frame; None where the pooled vector is all.

    Raises:
        InvalidInputError: too few training frames, a setting that the kind does not have, or tokens
            of cells where there are none.
    """
    require_cells(flags.world_slots, are_kept=cells is not None)
    per_frame = num_slot_vectors(cells or ObservationShape(1), flags.world_slots)
    num_vectors = len(codebook_sample(inputs, flags, per_frame)) * per_frame
    flags.quantiser.check(flags, num_vectors)


def codebook_step(
    cache: Cache, inputs: PrecomputeInputs, flags: CodebookFlags, device: str
) -> bool:
    """Fit the codebook and assign the tokens; return whether that was done already.

    Tokens are assigned from the float16 embeddings on the disk, so that anybody can compute them
    again.

    The embeddings have been checked or written just before.

    Raises:
        InvalidInputError: the disk or the memory is too small, the frames have no vectors of views
            or cells that could have tokens, or all vectors are the same.
    """
    read = "embeddings" if flags.world_slots == FIRST_SLOTS else cache.observation_array
    identity = {
        read: cache.manifest["arrays"][read]["sha256"],
        "codebook": flags.codebook_settings,
        "split": inputs.split_section,
    }
    kind = flags.quantiser
    if is_done(cache, "codebook", identity, (*kind.array_names, "world_tokens")):
        return True
    require_cells(flags.world_slots, are_kept=cache.has("view_embeddings"))
    per_frame = num_slot_vectors(cache.observation_shape, flags.world_slots)
    num_frames, num_slots = inputs.source.num_frames, per_frame * kind.levels(flags)
    shape = (num_frames,) if num_slots == 1 else (num_frames, num_slots)
    require_space(cache, {"world_tokens": shape})
    frames = codebook_sample(inputs, flags, per_frame)
    sample = StoredVectors.of(cache, frames, flags.world_slots)
    rounding = _rounding(sample)
    if rounding == float("inf"):
        raise InvalidInputError(
            f"all {len(sample)} embeddings of training frames that the codebook is fitted to are "
            f"the same vector ({cache.array_path(read)}), so that no token would tell frames "
            f"apart: are the images of {', '.join(inputs.image_keys)} black or all alike? Give "
            "another --image_key or encoder, or mend the recording"
        )
    quantiser = _fitted(flags, sample, len(frames), device)
    writer = CacheWriter(cache, "codebook", identity)
    for name, array in quantiser.arrays.items():
        writer.put(name, array)
    tokeniser = WorldTokeniser(quantiser, flags.world_slots, cache.observation_shape)
    _write_tokens(writer, tokeniser, cache.array_path(read), shape)
    in_training = inputs.episodes.frame_mask(inputs.split.train)
    codebook = {
        **flags.codebook_settings,
        "num_tokens": quantiser.num_codes,
        **({} if num_slots == 1 else {"num_slots": num_slots}),
        "fit_frames": len(frames),
        "fitted_on": "training episodes",
        **quantiser.fit_record,
        **_usage(writer.read_back("world_tokens")[in_training], quantiser.num_levels),
        "rounding_to_spread": rounding,
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


def _fitted(flags: CodebookFlags, sample: StoredVectors, num_frames: int, device: str) -> Quantiser:
    """Fit the quantiser, and print to what and how well."""
    frames = f"{num_frames} training frames"
    of_frames = frames if len(sample) == num_frames else f"{len(sample)} vectors of {frames}"
    print(f"fitting {flags.vq_num_tokens} codes to {of_frames}")
    quantiser = flags.quantiser.fit(flags, sample, device)
    if quantiser.explained_variance is not None:
        print(f"the codebook explains {quantiser.explained_variance:.1%} of their variance")
    return quantiser


def _write_tokens(
    writer: CacheWriter, tokeniser: WorldTokeniser, path: Path, shape: tuple[int, ...]
) -> None:
    """Assign the tokens of all frames, from what an earlier run has left undone."""
    num_frames, of_frames = shape[0], StoredRows(path, np.arange(shape[0]))
    step = max(1, BLOCK_ROWS * tokeniser.quantiser.num_levels // tokeniser.num_slots)
    for start in range(writer.open("world_tokens", shape), num_frames, step):
        block = of_frames[np.arange(start, min(start + step, num_frames))]
        pooled, cells = (block, None) if tokeniser.slots == FIRST_SLOTS else (None, block)
        writer.write(start, {"world_tokens": tokeniser.encode(pooled, cells)})


def _usage(tokens: Int[np.ndarray, " N *W"], num_levels: int) -> dict[str, Any]:
    """Return how many codes the training frames use; of several levels, the fewest of a level."""
    by_level = tokens.reshape(-1, num_levels).T
    used = [len(np.unique(level)) for level in by_level]
    return {"num_used": min(used), **({} if num_levels == 1 else {"num_used_per_level": used})}


def _rounding(sample: StoredVectors) -> float:
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
