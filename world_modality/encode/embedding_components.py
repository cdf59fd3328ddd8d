"""Principal components of embeddings: fewer numbers a cell, where a frame has many cells."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from world_modality.encode.fitted_encoder import require_arrays, require_weights, sha256_of
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class EmbeddingComponents:
    """Principal components of an encoder's embeddings: `(vectors - mean) @ components.T`.

    They are not whitened, so that distances between frames stay what they were, less what the
    left-out components held.

    Attributes:
        mean: float32 mean of the vectors that they were fitted to.
        components: float32, orthonormal rows, largest variance first.
        explained_variance: share of the variance that they hold.
        fit_frames: number of frames that they were fitted to.
    """

    array_names: ClassVar[tuple[str, ...]] = ("embedding_components", "embedding_components_mean")

    mean: Float[np.ndarray, " D"] = field(repr=False)
    components: Float[np.ndarray, "m D"] = field(repr=False)
    explained_variance: float
    fit_frames: int

    @classmethod
    def fit(
        cls, blocks: Iterable[Float[np.ndarray, "_ ... D"]], num_components: int
    ) -> "EmbeddingComponents":
        """Fit them to the vectors of training frames, which are read once, block by block.

        The covariance is summed in float64 around the first block's mean, so that memory is D²
        however many frames there are, and nothing is approximated.

        Args:
            blocks: of frames; a frame has one vector, or several (its cells), which count alike.
            num_components: m.

        Raises:
            InvalidInputError: m is larger than D or than the number of vectors, or the vectors
                are all the same.
        """
        fit_frames = num_vectors = 0
        for block in blocks:
            vectors = block.reshape(-1, block.shape[-1]).astype(np.float64)
            if num_vectors == 0:
                origin = vectors.mean(axis=0)
                sums, products = np.zeros_like(origin), np.zeros((len(origin), len(origin)))
            vectors -= origin
            sums += vectors.sum(axis=0)
            products += vectors.T @ vectors
            fit_frames += len(block)
            num_vectors += len(vectors)
        dim = len(origin) if num_vectors else 0
        if not 1 <= num_components <= min(dim, num_vectors):
            raise InvalidInputError(
                f"--embedding_components {num_components} must lie between 1 and "
                f"{min(dim, num_vectors)}: {num_vectors} vectors of {dim} numbers were sampled "
                f"from {fit_frames} training frames"
            )
        mean = sums / num_vectors
        variances, directions = np.linalg.eigh(products / num_vectors - np.outer(mean, mean))
        if not variances[-1] > 0:
            raise InvalidInputError(
                f"--embedding_components {num_components}: the embeddings of all {fit_frames} "
                "sampled training frames are the same; is the encoder's preprocessing wrong?"
            )
        components = directions[:, ::-1][:, :num_components].T
        # The sign of a direction is open: its largest entry is positive.
        largest = np.abs(components).argmax(axis=1)
        components *= np.sign(components[np.arange(num_components), largest])[:, None]
        explained = variances[::-1][:num_components].sum() / variances.sum()
        return cls(
            mean=(origin + mean).astype(np.float32),
            components=np.ascontiguousarray(components, dtype=np.float32),
            explained_variance=round(float(explained), 6),
            fit_frames=fit_frames,
        )

    @classmethod
    def load(
        cls, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> "EmbeddingComponents":
        """Rebuild them from what `record` gave and their two arrays.

        Raises:
            InvalidInputError: an array is not there, or they are not those of the record.
        """
        what = "the components of the embeddings"
        require_arrays(f"{what} need", cls.array_names, arrays)
        components, mean = (np.asarray(arrays[name]) for name in cls.array_names)
        loaded = cls(mean, components, record["explained_variance"], record["fit_frames"])
        require_weights(what, loaded.weights_sha256, record)
        return loaded

    @property
    def num_components(self) -> int:
        """M, the dimension of a projected vector."""
        return len(self.components)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a cache or checkpoint stores of them, by cache array name."""
        return dict(zip(self.array_names, (self.components, self.mean), strict=True))

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of both arrays' numbers."""
        return sha256_of(self.arrays.values())

    def record(self) -> dict[str, Any]:
        """Return what the manifest says about them; with `arrays`, enough for `load`."""
        return {
            "num_components": self.num_components,
            "explained_variance": self.explained_variance,
            "fit_frames": self.fit_frames,
            "weights_sha256": self.weights_sha256,
        }

    def project(self, vectors: Float[np.ndarray, "... D"]) -> Float[np.ndarray, "... m"]:
        """Project vectors onto the components; float32."""
        projected: np.ndarray = (vectors - self.mean) @ self.components.T
        return projected
