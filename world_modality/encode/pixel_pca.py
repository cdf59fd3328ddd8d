"""`pixel-pca`: principal components of down-sampled pixels, the encoder for where there is no hub.

A stand-in for a pretrained encoder, and in a fixed-camera simulator an honest baseline. Linear, so
a rollout needs two arrays and no scikit-learn.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8
from threadpoolctl import threadpool_limits

from world_modality.encode.fitted_encoder import FittedEncoder
from world_modality.system.errors import InvalidInputError

if TYPE_CHECKING:
    from world_modality.encode.vision_encoders import VisionEncoderFlags


@dataclass(frozen=True, kw_only=True)
class PixelPcaFlags:
    """Flags of `pixel-pca` alone."""

    pixel_pca_size: int = 32
    """Side, in pixels, that pixel-pca averages images down to."""
    pixel_pca_components: int = 192
    """Embedding dimension D of pixel-pca."""
    pixel_pca_fit_frames: int = 8192
    """Largest number of training frames that are sampled to fit pixel-pca."""


@cache
def averaging_matrix(num_pixels: int, size: int) -> Float[np.ndarray, "size pixels"]:
    """Return the weights that average `num_pixels` into `size` equal stretches.

    Target cell i covers [i, i + 1) * num_pixels / size of the source axis; each source pixel counts
    by the part of it that lies inside. Where size divides num_pixels this is the plain block mean.
    """
    edges = np.arange(size + 1) * num_pixels / size
    pixels = np.arange(num_pixels)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0, None) * size / num_pixels
    matrix = np.asarray(weights, dtype=np.float32)
    matrix.setflags(write=False)
    return matrix


def area_average(images: UInt8[np.ndarray, "B H W 3"], size: int) -> Float[np.ndarray, "B F"]:
    """Down-sample images to `size` x `size` by exact area averages and flatten them.

    Returns:
        float32 in [0, 1], F = 3 * size**2 in the order row, column, channel.

    Raises:
        InvalidInputError: an image is smaller than the target.
    """
    batch, height, width, _ = images.shape
    if height < size or width < size:
        raise InvalidInputError(
            f"images of {height}x{width} cannot be averaged down to --pixel_pca_size {size}; lower "
            f"it to {min(height, width)} or less"
        )
    rows = averaging_matrix(height, size)
    columns = averaging_matrix(width, size)
    narrow = rows @ images.reshape(batch, height, width * 3).astype(np.float32)
    cells = columns @ narrow.reshape(batch * size, width, 3)
    features: np.ndarray = cells.reshape(batch, size * size * 3) / np.float32(255)
    return features


@dataclass(frozen=True)
class PixelPCA(FittedEncoder):
    """The fitted encoder: `(pixels - mean) @ components.T`, not whitened.

    Attributes:
        components: float32, orthonormal rows, largest variance first.
        mean: float32 mean of the training pixels.
        image_size: of the down-sampled image, twice its side.
        fit_record: how it was fitted, for the manifest.
    """

    kind: ClassVar[str] = "pixel-pca"
    array_names: ClassVar[tuple[str, ...]] = ("pixel_pca_components", "pixel_pca_mean")
    preprocessing: ClassVar[dict[str, Any]] = {"resize": "area average", "scale": 1 / 255}
    stand_in_note: ClassVar[str | None] = (
        "pixel-pca is a stand-in: principal components of down-sampled pixels of this very "
        "dataset, no pretrained encoder and never a DINOv2 result"
    )

    components: Float[np.ndarray, "D F"] = field(repr=False)
    mean: Float[np.ndarray, " F"] = field(repr=False)
    image_size: list[int]
    fit_record: dict[str, Any]

    @classmethod
    def settings(cls, flags: "VisionEncoderFlags") -> dict[str, Any]:
        """Return all that determines the fit."""
        return {
            "size": flags.pixel_pca_size,
            "num_components": flags.pixel_pca_components,
            "fit_frames": flags.pixel_pca_fit_frames,
            "seed": flags.seed,
        }

    @classmethod
    def fit(
        cls,
        flags: "VisionEncoderFlags",
        blocks: Iterable[UInt8[np.ndarray, "_ H W 3"]],
        num_frames: int,
    ) -> "PixelPCA":
        """Fit the components by a randomised SVD (Halko et al., 2011) of the averaged pixels.

        Memory is that of the averaged sample. One thread computes, so that the result is the same
        on any number of cores.

        Raises:
            InvalidInputError: more components than frames or pixels, or images that are too small.
        """
        from sklearn.decomposition import PCA

        size, num_components = flags.pixel_pca_size, flags.pixel_pca_components
        features = np.empty((num_frames, 3 * size * size), dtype=np.float32)
        position = 0
        for images in blocks:
            features[position : position + len(images)] = area_average(images, size)
            position += len(images)
        if not 1 <= num_components <= min(features.shape):
            raise InvalidInputError(
                f"--pixel_pca_components {num_components} must lie between 1 and "
                f"{min(features.shape)}: {features.shape[0]} training frames of "
                f"{features.shape[1]} pixel values were sampled"
            )
        pca = PCA(
            num_components, svd_solver="randomized", iterated_power=4, random_state=flags.seed
        )
        # Products of several threads round otherwise, and the components with them.
        with threadpool_limits(1):
            pca.fit(features)
        explained = round(float(pca.explained_variance_ratio_.sum()), 6)
        return cls(
            components=pca.components_.astype(np.float32),
            mean=pca.mean_.astype(np.float32),
            image_size=[size, size],
            fit_record={
                "num_frames": num_frames,
                "seed": flags.seed,
                "explained_variance": explained,
            },
        )

    @classmethod
    def from_arrays(cls, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "PixelPCA":
        """Rebuild it from a manifest's record and its two arrays."""
        components, mean = (arrays[name] for name in cls.array_names)
        return cls(components, mean, list(record["image_size"]), dict(record["fit"]))

    @property
    def embedding_dim(self) -> int:
        """D."""
        return len(self.components)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache stores of it, by cache array name."""
        return dict(zip(self.array_names, (self.components, self.mean), strict=True))

    def encode(self, images: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B D"]:
        """Project images onto the components; float32."""
        pixels = area_average(images, self.image_size[0])
        embeddings: np.ndarray = (pixels - self.mean) @ self.components.T
        return embeddings
