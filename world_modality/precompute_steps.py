"""The precompute stage's first two steps: the dataset's columns, and the embeddings of its frames.

Each step has an identity, all that determines its arrays; a step whose identity the manifest
records and whose arrays are intact is not done again.
"""

from dataclasses import asdict, dataclass
from typing import Any

from world_modality.cache import ARRAYS, Cache
from world_modality.cache_steps import done_step, is_done, require_space
from world_modality.cache_writer import CacheWriter
from world_modality.codebook_step import CODEBOOK_ARRAYS
from world_modality.dataset_columns import column_shapes, write_columns
from world_modality.embedding_pass import PassSpeed, fit_pixel_pca, write_embeddings
from world_modality.pixel_pca import KIND as PIXEL_PCA
from world_modality.pixel_pca import PixelPCA
from world_modality.precompute_inputs import PrecomputeInputs
from world_modality.vision_encoders import EncoderRequest, VisionEncoder, build_encoder

PIXEL_PCA_ARRAYS = ("pixel_pca_components", "pixel_pca_mean")


@dataclass(frozen=True)
class PixelPcaRequest:
    """Settings of `pixel-pca`."""

    size: int
    num_components: int
    fit_frames: int
    seed: int

    def fit(self, inputs: PrecomputeInputs, batch_size: int) -> PixelPCA:
        """Fit it to a sample of training frames."""
        return fit_pixel_pca(
            inputs.source,
            inputs.image_key,
            inputs.training_sample(self.fit_frames, self.seed),
            size=self.size,
            num_components=self.num_components,
            seed=self.seed,
            batch_size=batch_size,
        )


@dataclass(frozen=True)
class Execution:
    """How the encoder runs; not part of what the embeddings are."""

    batch_size: int
    device: str


def columns_step(cache: Cache, inputs: PrecomputeInputs) -> bool:
    """Write states, actions and indices; return whether they were there already."""
    identity = {"dataset": inputs.dataset_section}
    names = tuple(inputs.keys.arrays)
    if is_done(cache, "columns", identity, names):
        return True
    shapes = column_shapes(inputs.source, inputs.keys, inputs.scan)
    require_space(cache, shapes)
    writer = CacheWriter(cache, "columns", identity)
    write_columns(writer, inputs.source, inputs.keys, inputs.scan)
    sections: dict[str, Any] = {"dataset": inputs.dataset_section}
    steps: dict[str, str | None] = {**done_step("columns", identity)}
    recorded = cache.manifest if cache.manifest_path.exists() else {}
    stale: tuple[str, ...] = ()
    if recorded.get("dataset") != inputs.dataset_section:
        # Another dataset under this name: nothing that was made from the old one may stay.
        stale = tuple(name for name in ARRAYS if name not in names)
        sections |= {"encoder": None, "codebook": None, "split": None, "text": None}
        steps = {**dict.fromkeys(recorded.get("steps", {})), **steps}
    writer.publish({**sections, "steps": steps}, stale)
    return False


def embeddings_step(
    cache: Cache,
    inputs: PrecomputeInputs,
    request: EncoderRequest,
    pixel_pca: PixelPcaRequest,
    execution: Execution,
) -> PassSpeed | None:
    """Embed every frame; return how fast, or None where that was done already.

    Args:
        cache: where the embeddings go.
        inputs: the dataset.
        request: the encoder.
        pixel_pca: its settings where the encoder is `pixel-pca`.
        execution: how it runs.
    """
    encoder = None if request.name == PIXEL_PCA else _build(request, execution)
    if encoder is None:
        settings = {"kind": PIXEL_PCA, **asdict(pixel_pca), "split": inputs.split_section}
        names: tuple[str, ...] = ("embeddings", *PIXEL_PCA_ARRAYS)
    else:
        # A model is the same under another path, and whatever the device that ran it.
        settings = {k: v for k, v in encoder.record().items() if k not in ("name", "revision")}
        names = ("embeddings",)
    identity = {"dataset": inputs.dataset_section, "encoder": settings}
    if is_done(cache, "embeddings", identity, names):
        return None
    if encoder is None:
        encoder = pixel_pca.fit(inputs, execution.batch_size)
    if encoder.stand_in_note:
        print(f"note: {encoder.stand_in_note}")
    require_space(cache, {"embeddings": (inputs.source.num_frames, encoder.embedding_dim)})
    resumable = {**identity, "record": encoder.record(), "compute": encoder.compute}
    writer = CacheWriter(cache, "embeddings", resumable)
    for name, array in encoder.arrays.items():
        writer.put(name, array)
    speed = write_embeddings(writer, inputs.source, inputs.image_key, encoder, execution.batch_size)
    sections = {
        "encoder": encoder.record(),
        "codebook": None,
        "steps": done_step("embeddings", identity),
        "compute": {**encoder.compute, "frames_per_s": round(speed.frames_per_s, 1)},
    }
    unused = tuple(name for name in PIXEL_PCA_ARRAYS if name not in encoder.arrays)
    writer.publish(sections, (*CODEBOOK_ARRAYS, *unused))
    return speed


def _build(request: EncoderRequest, execution: Execution) -> VisionEncoder:
    from world_modality.device import resolve_device

    return build_encoder(request, resolve_device(execution.device))
