"""The precompute stage's last step: the codebook, fitted and applied to stored embeddings."""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.codebook import (
    Codebook,
    VqBackend,
    assign_world_tokens,
    fit_codebook,
    in_codebook_space,
    rounding_to_spread,
)

if TYPE_CHECKING:
    import torch

CODEBOOK_ARRAYS = ("codebook_centroids", "world_tokens")
BLOCK_ROWS = 2_048
# Above this share of the spread, float16 moves frames between neighbouring centroids.
ROUNDING_LIMIT = 0.01
# faiss warns below this many points a centroid.
MIN_FRAMES_PER_TOKEN = 39
# With `torch`, more frames than memory holds may be fitted; float16's rounding is seen on these.
ROUNDING_FRAMES = 65_536
# What faiss and sklearn hold at once: float16 rows, float32 rows, and three copies of them.
FIT_BYTES_PER_NUMBER = 18


@dataclass(frozen=True)
class CodebookRequest:
    """Settings of the codebook."""

    num_tokens: int
    l2_normalize: bool
    backend: VqBackend
    iterations: int
    fit_frames: int
    seed: int

    def training_sample(self, inputs: PrecomputeInputs) -> Int[np.ndarray, " N"]:
        """Return the frames that the codebook is fitted on."""
        return inputs.training_sample(self.fit_frames or sys.maxsize, self.seed)

    def device(self, name: str) -> "torch.device | None":
        """Return the device that computes; None for the libraries that know the CPU only."""
        if self.backend != "torch":
            return None
        from world_modality.system.device import resolve_device

        return resolve_device(name)

    def require_enough(self, inputs: PrecomputeInputs) -> None:
        """Check that there are enough training frames, before anything is embedded.

        Raises:
            InvalidInputError: V is larger than their number, or that number is negative.
        """
        if self.fit_frames < 0:
            raise InvalidInputError(
                f"--vq_fit_frames {self.fit_frames} is negative; give how many training frames the "
                "codebook is fitted on, or 0 for all"
            )
        available = len(self.training_sample(inputs))
        if self.num_tokens > available:
            raise InvalidInputError(
                f"--vq_num_tokens {self.num_tokens} is more than the {available} training frames "
                f"that the codebook is fitted on; lower it (--vq_fit_frames is {self.fit_frames})"
            )

    def require_memory(self, shape: tuple[int, int]) -> None:
        """Check that the sample fits into memory, where the backend needs it there.

        Raises:
            InvalidInputError: says how much it needs.
        """
        needed = shape[0] * shape[1] * FIT_BYTES_PER_NUMBER
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self.backend != "torch" and needed > memory:
            raise InvalidInputError(
                f"--vq_backend {self.backend} holds all frames it is fitted on: {shape[0]} frames "
                f"of {shape[1]} numbers need {needed / 1e9:.0f} GB, this machine has "
                f"{memory / 1e9:.0f} GB; lower --vq_fit_frames (0 is all), or give --vq_backend "
                "torch, which reads them in blocks; the embeddings are kept"
            )


class StoredRows:
    """Frames of the embeddings on the disk, in the codebook's space.

    Args:
        path: of the embeddings, which `Cache.load` has checked before.
        frames: which of them are rows here.
        normalize: the manifest's `codebook.l2_normalize`.
    """

    def __init__(self, path: Path, frames: Int[np.ndarray, " N"], *, normalize: bool) -> None:
        self.path, self.frames, self.normalize = path, frames, normalize

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
        return in_codebook_space(self.stored(indices), normalize=self.normalize)

    def stored(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
        """Copy rows as they are on the disk, in float16.

        Mapped anew for every block: pages that were read stay resident as long as their map.
        """
        frames = self.frames[indices]
        blocks = [
            np.load(self.path, mmap_mode="r", allow_pickle=False)[
                frames[start : start + BLOCK_ROWS]
            ]
            for start in range(0, len(frames), BLOCK_ROWS)
        ]
        return np.concatenate(blocks)


def codebook_step(
    cache: Cache, inputs: PrecomputeInputs, request: CodebookRequest, device_name: str
) -> bool:
    """Fit the codebook and assign the tokens; return whether that was done already.

    Tokens are assigned from the float16 embeddings on the disk, so that anybody can compute them
    again.

    Args:
        cache: whose embeddings have been checked or written just before.
        inputs: the dataset.
        request: the codebook.
        device_name: `--device`, where `torch` fits and assigns.

    Raises:
        InvalidInputError: the disk or the memory is too small.
    """
    identity = {
        "embeddings": cache.manifest["arrays"]["embeddings"]["sha256"],
        "codebook": asdict(request),
        "split": inputs.split_section,
    }
    if is_done(cache, "codebook", identity, CODEBOOK_ARRAYS):
        return True
    num_frames, embedding_dim = cache.manifest["arrays"]["embeddings"]["shape"]
    shapes = {
        "codebook_centroids": (request.num_tokens, embedding_dim),
        "world_tokens": (num_frames,),
    }
    require_space(cache, shapes)
    frames = request.training_sample(inputs)
    request.require_memory((len(frames), embedding_dim))
    path, device = cache.array_path("embeddings"), request.device(device_name)
    sample = StoredRows(path, frames, normalize=request.l2_normalize)
    print(f"fitting {request.num_tokens} centroids to {len(sample)} training frames")
    codebook = fit_codebook(
        sample,
        request.num_tokens,
        backend=request.backend,
        seed=request.seed,
        num_iterations=request.iterations,
        device=device,
    )
    writer = CacheWriter(cache, "codebook", identity)
    writer.put("codebook_centroids", codebook.centroids)
    for start in range(writer.open("world_tokens", (num_frames,)), num_frames, BLOCK_ROWS):
        block = np.arange(start, min(start + BLOCK_ROWS, num_frames))
        vectors = StoredRows(path, block, normalize=request.l2_normalize)[np.arange(len(block))]
        tokens = assign_world_tokens(vectors, codebook.centroids, device)
        writer.write(start, {"world_tokens": tokens})
    in_training = inputs.episodes.frame_mask(inputs.split.train)
    num_used = len(np.unique(writer.read_back("world_tokens")[in_training]))
    sections = {
        "codebook": _section(request, codebook, num_used, _rounding(sample, request)),
        "split": inputs.split_section,
        "steps": done_step("codebook", identity),
        "versions": installed_versions(),
    }
    writer.publish(sections)
    return False


def _rounding(sample: StoredRows, request: CodebookRequest) -> float:
    """Return float16's rounding over the spread, on no more frames than memory holds."""
    indices = np.arange(len(sample))
    if request.backend == "torch" and len(sample) > ROUNDING_FRAMES:
        indices = np.linspace(0, len(sample) - 1, ROUNDING_FRAMES).astype(np.int64)
    return rounding_to_spread(sample.stored(indices))


def _section(
    request: CodebookRequest, codebook: Codebook, num_used: int, rounding: float
) -> dict[str, Any]:
    """Return the manifest's `codebook`."""
    return {
        **asdict(request),
        "fit_frames": codebook.num_fit_frames,
        "fitted_on": "training episodes",
        "inertia": codebook.inertia,
        "num_used": num_used,
        "rounding_to_spread": rounding,
    }


def codebook_advice(codebook: dict[str, Any]) -> list[str]:
    """Say in words what a manifest's `codebook` section gives reason to change."""
    advice = []
    num_tokens, num_used = codebook["num_tokens"], codebook["num_used"]
    if codebook["rounding_to_spread"] > ROUNDING_LIMIT:
        advice.append(
            "the embeddings' spread is close to float16's rounding, so stored tokens are partly "
            "noise; are the frames all alike, or is the encoder's preprocessing wrong?"
        )
    if num_used < num_tokens / 2:
        advice.append(
            f"only {num_used} of {num_tokens} codes are used; lower --vq_num_tokens, or look at "
            "the frames with python -m world_modality.inspect_token_images"
        )
    if codebook["fit_frames"] < MIN_FRAMES_PER_TOKEN * num_tokens:
        advice.append(
            f"the codebook has {codebook['fit_frames'] / num_tokens:.0f} training frames a code, "
            f"fewer than {MIN_FRAMES_PER_TOKEN}; lower --vq_num_tokens where tokens look noisy"
        )
    return advice
