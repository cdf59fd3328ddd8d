"""What a run of the precompute stage did, and what its cache advises."""

from dataclasses import dataclass

from world_modality.cache.contract import Cache
from world_modality.precompute.codebook_step import codebook_advice
from world_modality.precompute.embedding_pass import PassSpeed


@dataclass(frozen=True)
class PrecomputeResult:
    """What a run did; the numbers themselves are in the manifest.

    Attributes:
        cache: the finished cache, or the one that the shard belongs to.
        reused: the steps that an earlier run had already done.
        speed: of the embedding pass, None where it was reused.
    """

    cache: Cache
    reused: tuple[str, ...]
    speed: PassSpeed | None


def print_summary(result: PrecomputeResult) -> None:
    """Print what the cache holds, and what its figures advise."""
    manifest = result.cache.manifest
    encoder, codebook = manifest["encoder"], manifest["codebook"]
    print(f"\ncache {result.cache.folder}")
    print(f"  reused            {', '.join(result.reused) or 'nothing'}")
    if result.speed is not None:
        print(
            f"  embedded          {result.speed.num_frames} frames at "
            f"{result.speed.frames_per_s:.1f} frames/s"
        )
    print(
        f"  encoder           {encoder['name']}, D={encoder['embedding_dim']}, pooling "
        f"{encoder['pooling']}"
    )
    print(
        f"  codebook          V={codebook['num_tokens']}, {codebook['num_used']} codes used by "
        f"training frames, l2_normalize {codebook['l2_normalize']}, mean squared distance "
        f"{codebook['inertia']:.4g}"
    )
    print(f"  float16 rounding  {codebook['rounding_to_spread']:.2%} of the embeddings' spread")
    for note in (encoder["note"], *codebook_advice(codebook)):
        if note:
            print(f"  note: {note}")
