"""The interface of what turns an embedding into a world token."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from world_modality.system.errors import InvalidInputError


@runtime_checkable
class Rows(Protocol):
    """Rows of numbers, wherever they are: an array, or something that reads them from a disk."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
        """Return some rows."""


class Quantiser(ABC):
    """A quantiser that was fitted to the embeddings of training frames.

    Attributes:
        array_names: its arrays in a cache, a checkpoint, and `arrays`.
        explained_variance: which share of the spread of the embeddings it was fitted to is not
            quantisation error, in the space that it works in; None where that is not known.
    """

    array_names: ClassVar[tuple[str, ...]]
    explained_variance: float | None = None

    @classmethod
    @abstractmethod
    def settings(cls, flags: Any) -> dict[str, Any]:
        """Return the settings that only this kind has, for the manifest's `codebook`."""

    @classmethod
    def levels(cls, flags: Any) -> int:
        """Return how many tokens the flags ask for of a vector."""
        return 1

    @classmethod
    def check(cls, flags: Any, num_vectors: int) -> None:
        """Refuse settings that cannot be fitted to so many vectors, before any is embedded."""
        if flags.vq_num_tokens < 1:
            raise InvalidInputError("--vq_num_tokens must be at least 1")

    @classmethod
    @abstractmethod
    def fit(cls, flags: Any, rows: Rows, device: str) -> "Quantiser":
        """Fit it to stored embeddings.

        Args:
            flags: the stage's `CodebookFlags`.
            rows: vectors of training frames, as the cache stores them.
            device: `--device`, for a kind that does not compute on the CPU alone.
        """

    @classmethod
    @abstractmethod
    def load(cls, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "Quantiser":
        """Rebuild it from the manifest's `codebook` and its arrays, which are all there."""

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """V."""

    @property
    def num_levels(self) -> int:
        """How many tokens it gives a vector."""
        return 1

    @property
    @abstractmethod
    def embedding_dim(self) -> int:
        """D."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """What a cache stores of it, by cache array name."""

    @property
    def fit_record(self) -> dict[str, Any]:
        """What the manifest's `codebook` says of the fit."""
        return {}

    @abstractmethod
    def encode(self, embeddings: Float[np.ndarray, "N D"]) -> Int[np.ndarray, " N *levels"]:
        """Return the int32 world tokens, in [0, V), of embeddings as the cache stores them.

        One a vector, or [N, levels] where there are several.
        """
