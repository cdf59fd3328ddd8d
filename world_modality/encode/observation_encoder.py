"""What becomes of a frame's camera images: one pooled vector, and cells of several views.

A frame has P cells: of each view (camera) its pooled vector, or a grid of g×g vectors, in the order
view by view and row by row; as their principal components where they are to be smaller.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from world_modality.cache.frame_shapes import ObservationShape
from world_modality.encode.vision_encoders import VisionEncoder, VisionEncoderFlags, load_encoder
from world_modality.system.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

    from world_modality.encode.embedding_components import EmbeddingComponents


@dataclass(frozen=True, kw_only=True)
class ObservationFlags(VisionEncoderFlags):
    """Flags of what is kept of a frame's images."""

    embedding_grid: int = 1
    """Cells along each side of an image: g keeps the embeddings of g×g parts of each view beside
    the pooled one; 1 keeps the pooled one alone."""
    embedding_components: int | None = None
    """Keep this many principal components of the vectors that the policy reads, fitted to training
    frames; without it they are kept whole."""

    def check_observation(self) -> None:
        """Refuse sizes that no encoder can have.

        Raises:
            InvalidInputError: a number below 1.
        """
        if self.embedding_grid < 1:
            raise InvalidInputError(f"--embedding_grid {self.embedding_grid} must be at least 1")
        if self.embedding_components is not None and self.embedding_components < 1:
            raise InvalidInputError(
                f"--embedding_components {self.embedding_components} must be at least 1"
            )


@dataclass(frozen=True)
class ObservationEmbeddings:
    """What is kept of B frames, in float32 until it is rounded.

    Attributes:
        pooled: of the first view, as its encoder gives it.
        cells: what the policy reads; None where that is the pooled vector.
    """

    pooled: Float[np.ndarray, "B D"]
    cells: Float[np.ndarray, "B P M"] | None = None

    def rounded(self, first_frame: int = 0) -> "ObservationEmbeddings":
        """Round them to what a cache stores, float16; `first_frame` is the number of row 0.

        Raises:
            InvalidInputError: names the first frame whose embedding is not finite in float16.
        """
        cells = None if self.cells is None else to_float16(self.cells, first_frame)
        return ObservationEmbeddings(to_float16(self.pooled, first_frame), cells)

    def read(self, shape: ObservationShape) -> Float[np.ndarray, "B *P M"]:
        """Return what a policy reads of the frames, given what its cache keeps of one."""
        if self.cells is None:
            return self.pooled
        return self.cells.reshape(-1, *shape.axis, shape.embedding_dim)


def to_float16(
    embeddings: Float[np.ndarray, "B *P D"], first_frame: int
) -> Float[np.ndarray, "B *P D"]:
    """Round embeddings to what the cache stores.

    Raises:
        InvalidInputError: names the first frame whose embedding is not finite in float16.
    """
    with np.errstate(over="ignore"):
        stored = embeddings.astype(np.float16)
    bad = ~np.isfinite(stored).all(axis=tuple(range(1, stored.ndim)))
    if bad.any():
        frame = first_frame + int(np.argmax(bad))
        largest = np.abs(embeddings[np.isfinite(embeddings)]).max(initial=0)
        reason = "is not finite" if not np.isfinite(embeddings[bad]).all() else "overflows float16"
        raise InvalidInputError(
            f"the embedding of frame {frame} {reason} (largest finite number {largest:.3g}); check "
            "the encoder's weights, or try --precision fp32"
        )
    return stored


@dataclass(frozen=True)
class ObservationEncoder:
    """Embeds the views of frames.

    Attributes:
        encoder: of each view.
        num_views: how many cameras a frame has.
        grid_size: g of each view.
        components: what cells are projected onto; None keeps them whole.
    """

    encoder: VisionEncoder
    num_views: int = 1
    grid_size: int = 1
    components: "EmbeddingComponents | None" = None

    @property
    def stores_cells(self) -> bool:
        """Whether more is kept than one pooled vector."""
        return self.num_views > 1 or self.grid_size > 1 or self.components is not None

    @property
    def shape(self) -> ObservationShape:
        """What a policy reads of a frame."""
        dim = self.encoder.embedding_dim
        if self.components is not None:
            dim = self.components.num_components
        return ObservationShape(dim, self.num_views, self.grid_size)

    @property
    def cell_shape(self) -> tuple[int, int] | None:
        """P and M of the cells of a frame; None where none are stored."""
        shape = self.shape
        return (shape.num_vectors, shape.embedding_dim) if self.stores_cells else None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a cache or checkpoint stores of it, by cache array name."""
        own = {} if self.components is None else self.components.arrays
        return {**self.encoder.arrays, **own}

    def record(self) -> dict[str, Any]:
        """Return the manifest's `encoder` section."""
        return self.encoder.record()

    def observation_record(self, image_keys: Sequence[str]) -> dict[str, Any] | None:
        """Return the manifest's `observation` section; None where no cells are stored."""
        if not self.stores_cells:
            return None
        components = None
        if self.components is not None:
            fitted_to = {"encoder_sha256": self.record()["weights_sha256"]}
            components = {**self.components.record(), **fitted_to}
        return {
            "image_keys": list(image_keys),
            "grid_size": self.grid_size,
            "num_vectors": self.shape.num_vectors,
            "embedding_dim": self.shape.embedding_dim,
            "components": components,
        }

    def encode(self, views: Sequence[UInt8[np.ndarray, "B _ _ 3"]]) -> ObservationEmbeddings:
        """Embed frames, given as one block of images for each view.

        Raises:
            ValueError: another number of views.
            InvalidInputError: the encoder has no grid of this size.
        """
        if len(views) != self.num_views:
            raise ValueError(f"{len(views)} views, expected {self.num_views}")
        if self.grid_size == 1:
            return self._joined([(pooled, None) for pooled in map(self.encoder.encode, views)])
        return self._joined([self.encoder.encode_grid(view, self.grid_size) for view in views])

    def encode_blocks(
        self, blocks: Iterable[Sequence[UInt8[np.ndarray, "B _ _ 3"]]], block_size: int
    ) -> Iterator[ObservationEmbeddings]:
        """Embed block after block, each of all views, as fast as the encoder can.

        All blocks but the last are of `block_size` frames. Each view is preprocessed by itself, so
        that views may differ in their images' size.
        """
        images = (view for views in blocks for view in views)
        embedded: Iterator[tuple[np.ndarray, np.ndarray | None]]
        if self.grid_size == 1:
            vectors = self.encoder.encode_blocks(images, block_size)
            embedded = ((pooled, None) for pooled in vectors)
        else:
            embedded = iter(self.encoder.grid_blocks(images, block_size, self.grid_size))
        for views in zip(*[embedded] * self.num_views, strict=True):
            yield self._joined(views)

    def _joined(
        self, views: Sequence[tuple[np.ndarray, np.ndarray | None]]
    ) -> ObservationEmbeddings:
        """Put what the encoder gave of each view, pooled and perhaps cells, side by side."""
        pooled = views[0][0]
        if not self.stores_cells:
            return ObservationEmbeddings(pooled)
        cells = np.concatenate(
            [pooled[:, None] if cells is None else cells for pooled, cells in views], axis=1
        )
        if self.components is not None:
            cells = self.components.project(cells)
        return ObservationEmbeddings(pooled, cells)


def load_observation_encoder(
    manifest: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    device: "torch.device",
    *,
    model_name: str | None = None,
    trust_remote_code: bool = False,
) -> ObservationEncoder:
    """Rebuild what embedded the frames of a cache, from its manifest or a checkpoint's copy.

    Args:
        manifest: with the sections `encoder` and, where cells are stored, `observation`.
        arrays: those of the cache or checkpoint; of a fitted encoder and of components among them.
        device: where it runs.
        model_name: the model's folder or hub name where it has moved since.
        trust_remote_code: run code that the model's repository brings along.

    Raises:
        InvalidInputError: as `load_encoder`, or the components are not those of this encoder.
    """
    encoder = load_encoder(
        manifest["encoder"],
        arrays,
        device,
        model_name=model_name,
        trust_remote_code=trust_remote_code,
    )
    section = manifest.get("observation")
    if section is None:
        return ObservationEncoder(encoder)
    components = load_components(section, arrays, encoder)
    return ObservationEncoder(encoder, len(section["image_keys"]), section["grid_size"], components)


def load_components(
    section: Mapping[str, Any], arrays: Mapping[str, np.ndarray], encoder: VisionEncoder
) -> "EmbeddingComponents | None":
    """Rebuild the components of a manifest's `observation` section; None where it has none.

    Raises:
        InvalidInputError: the arrays are not those of the record, or were fitted to the vectors of
            another encoder than this one.
    """
    from world_modality.encode.embedding_components import EmbeddingComponents

    record = section["components"]
    if record is None:
        return None
    components = EmbeddingComponents.load(record, arrays)
    found, own = record["encoder_sha256"], encoder.record()["weights_sha256"]
    dims = components.components.shape[1], encoder.embedding_dim
    if found != own or dims[0] != dims[1]:
        raise InvalidInputError(
            f"the embedding components were fitted to vectors of dimension {dims[0]} of the "
            f"encoder with weights {found[:12]}, but {encoder.name} gives {dims[1]} and has "
            f"weights {own[:12]}; precompute again with --embedding_components"
        )
    return components
