"""`pixel-pca`: principal components of down-sampled pixels, the encoder for where there is no hub.

A stand-in for a pretrained encoder, and in a fixed-camera simulator an honest baseline. Linear, so
a rollout needs two arrays and no scikit-learn.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from world_modality.system.errors import InvalidInputError

KIND = "pixel-pca"
COMPUTE = {"device": "cpu", "dtype": "float32"}
STAND_IN_NOTE = (
    "pixel-pca is a stand-in: principal components of down-sampled pixels of this very dataset, "
    "no pretrained encoder and never a DINOv2 result"
)


@cache
def _averaging_matrix(num_pixels: int, size: int) -> Float[np.ndarray, "size pixels"]:
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
    rows = _averaging_matrix(height, size)
    columns = _averaging_matrix(width, size)
    narrow = rows @ images.reshape(batch, height, width * 3).astype(np.float32)
    cells = columns @ narrow.reshape(batch * size, width, 3)
    features: np.ndarray = cells.reshape(batch, size * size * 3) / np.float32(255)
    return features


def _sha256(components: np.ndarray, mean: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(components, dtype=np.float32).tobytes())
    digest.update(np.ascontiguousarray(mean, dtype=np.float32).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class PixelPCA:
    """The fitted encoder: `(pixels - mean) @ components.T`, not whitened.

    Attributes:
        components: float32, orthonormal rows, largest variance first.
        mean: float32 mean of the training pixels.
        size: side of the down-sampled image.
        fit: how it was fitted, for the manifest.
    """

    components: Float[np.ndarray, "D F"] = field(repr=False)
    mean: Float[np.ndarray, " F"] = field(repr=False)
    size: int
    fit: dict[str, Any]

    @classmethod
    def fit_to(
        cls, features: Float[np.ndarray, "N F"], num_components: int, seed: int
    ) -> "PixelPCA":
        """Fit the components to the averaged pixels of training frames.

        Args:
            features: rows of `area_average`.
            num_components: D.
            seed: of the randomised SVD (Halko et al., 2011).

        Raises:
            InvalidInputError: more components than frames or pixels.
        """
        from sklearn.decomposition import PCA

        if not 1 <= num_components <= min(features.shape):
            raise InvalidInputError(
                f"--pixel_pca_components {num_components} must lie between 1 and "
                f"{min(features.shape)}: {features.shape[0]} training frames of "
                f"{features.shape[1]} pixel values were sampled"
            )
        pca = PCA(num_components, svd_solver="randomized", iterated_power=4, random_state=seed)
        pca.fit(features)
        return cls(
            components=pca.components_.astype(np.float32),
            mean=pca.mean_.astype(np.float32),
            size=round((features.shape[1] / 3) ** 0.5),
            fit={
                "num_frames": len(features),
                "seed": seed,
                "explained_variance": round(float(pca.explained_variance_ratio_.sum()), 6),
            },
        )

    @classmethod
    def from_arrays(
        cls,
        record: dict[str, Any],
        components: Float[np.ndarray, "D F"],
        mean: Float[np.ndarray, " F"],
    ) -> "PixelPCA":
        """Rebuild the encoder from a manifest's record and the cache's two arrays.

        Raises:
            InvalidInputError: the arrays are not those of the record.
        """
        found = _sha256(components, mean)
        if found != record["weights_sha256"]:
            raise InvalidInputError(
                f"the pixel-pca arrays have hash {found[:12]}, but the record says "
                f"{record['weights_sha256'][:12]}; they belong to another cache"
            )
        size = int(record["image_size"][0])
        return cls(np.asarray(components), np.asarray(mean), size, dict(record["fit"]))

    @property
    def name(self) -> str:
        """The `--vision_model_name`."""
        return KIND

    @property
    def embedding_dim(self) -> int:
        """D."""
        return len(self.components)

    @property
    def stand_in_note(self) -> str | None:
        """What to say beside every result."""
        return STAND_IN_NOTE

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache stores of it, by cache array name."""
        return {"pixel_pca_components": self.components, "pixel_pca_mean": self.mean}

    @property
    def compute(self) -> dict[str, str]:
        """Device and number format that it computes with."""
        return dict(COMPUTE)

    def encode(self, images: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B D"]:
        """Project images onto the components; float32."""
        embeddings: np.ndarray = (area_average(images, self.size) - self.mean) @ self.components.T
        return embeddings

    def encode_blocks(
        self, blocks: Iterable[UInt8[np.ndarray, "B H W 3"]], block_size: int
    ) -> Iterator[Float[np.ndarray, "B D"]]:
        """Embed one block after another: decoding takes longer, and has threads of its own."""
        return map(self.encode, blocks)

    def record(self) -> dict[str, Any]:
        """Return what the manifest says about the encoder."""
        return {
            "name": KIND,
            "kind": KIND,
            "revision": None,
            "weights_sha256": _sha256(self.components, self.mean),
            "pooling": None,
            "image_size": [self.size, self.size],
            "embedding_dim": self.embedding_dim,
            "preprocessing": {"resize": "area average", "scale": 1 / 255},
            "fit": self.fit,
            "is_stand_in": True,
            "note": STAND_IN_NOTE,
        }
