"""The precompute stage's last step: the codebook, fitted and applied to stored embeddings."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from world_modality.cache import Cache
from world_modality.cache_steps import (
    done_step,
    installed_versions,
    is_done,
    require_space,
)
from world_modality.cache_writer import CacheWriter
from world_modality.codebook import (
    Codebook,
    VqBackend,
    assign_world_tokens,
    fit_codebook,
    in_codebook_space,
    rounding_to_spread,
)
from world_modality.errors import InvalidInputError
from world_modality.precompute_inputs import PrecomputeInputs

CODEBOOK_ARRAYS = ("codebook_centroids", "world_tokens")
BLOCK_ROWS = 2_048
# Above this share of the spread, float16 moves frames between neighbouring centroids.
ROUNDING_LIMIT = 0.01
# faiss warns below this many points a centroid.
MIN_FRAMES_PER_TOKEN = 39


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
        return inputs.training_sample(self.fit_frames, self.seed)

    def require_enough(self, inputs: PrecomputeInputs) -> None:
        """Check that there are enough training frames, before anything is embedded.

        Raises:
            InvalidInputError: V is larger than their number.
        """
        available = len(self.training_sample(inputs))
        if self.num_tokens > available:
            raise InvalidInputError(
                f"--vq_num_tokens {self.num_tokens} is more than the {available} training frames "
                f"that the codebook is fitted on; lower it (--vq_fit_frames is {self.fit_frames})"
            )


def codebook_step(cache: Cache, inputs: PrecomputeInputs, request: CodebookRequest) -> bool:
    """Fit the codebook and assign the tokens; return whether that was done already.

    Tokens are assigned from the float16 embeddings on the disk, so that anybody can compute them
    again.
    """
    identity = {
        "embeddings": cache.manifest["arrays"]["embeddings"]["sha256"],
        "codebook": asdict(request),
        "split": inputs.split_section,
    }
    if is_done(cache, "codebook", identity, CODEBOOK_ARRAYS):
        return True
    num_frames, embedding_dim = cache.load("embeddings").shape
    shapes = {
        "codebook_centroids": (request.num_tokens, embedding_dim),
        "world_tokens": (num_frames,),
    }
    require_space(cache, shapes)
    sample = _stored_rows(cache, request.training_sample(inputs))
    print(f"fitting {request.num_tokens} centroids to {len(sample)} training frames")
    codebook = fit_codebook(
        in_codebook_space(sample, normalize=request.l2_normalize),
        request.num_tokens,
        backend=request.backend,
        seed=request.seed,
        num_iterations=request.iterations,
    )
    writer = CacheWriter(cache, "codebook", identity)
    writer.put("codebook_centroids", codebook.centroids)
    for start in range(writer.open("world_tokens", (num_frames,)), num_frames, BLOCK_ROWS):
        rows = _stored_rows(cache, np.arange(start, min(start + BLOCK_ROWS, num_frames)))
        vectors = in_codebook_space(rows, normalize=request.l2_normalize)
        writer.write(start, {"world_tokens": assign_world_tokens(vectors, codebook.centroids)})
    in_training = inputs.episodes.frame_mask(inputs.split.train)
    num_used = len(np.unique(writer.read_back("world_tokens")[in_training]))
    sections = {
        "codebook": _section(request, codebook, num_used, rounding_to_spread(sample)),
        "split": inputs.split_section,
        "steps": done_step("codebook", identity),
        "versions": installed_versions(),
    }
    writer.publish(sections)
    return False


def _stored_rows(cache: Cache, frames: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N D"]:
    """Copy some rows of the embeddings, which `Cache.load` has checked before.

    Mapped anew for every block: pages that were read stay resident as long as their map.
    """
    path = cache.array_path("embeddings")
    blocks = [
        np.load(path, mmap_mode="r", allow_pickle=False)[frames[start : start + BLOCK_ROWS]]
        for start in range(0, len(frames), BLOCK_ROWS)
    ]
    return np.concatenate(blocks)


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
