"""The base of encoders that are fitted to a dataset's training frames and kept as arrays."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from world_modality.system.errors import InvalidInputError


class FittedEncoder(ABC):
    """A vision encoder in numpy that a cache and a checkpoint hold whole; see `VisionEncoder`.

    Attributes:
        kind: its `--vision_model_name`.
        array_names: its arrays in a cache or a checkpoint; each begins with the kind's name.
        compute: device and number format that it computes with.
        uses_threads: whether several threads embed a frame sooner than one.
        stand_in_note: what every output says where this is no pretrained encoder.
        image_size: what it sees of an image, [height, width].
        preprocessing: what becomes of an image before, for the manifest.
        fit_record: how it was fitted, for the manifest.
    """

    kind: ClassVar[str]
    array_names: ClassVar[tuple[str, ...]]
    preprocessing: ClassVar[dict[str, Any]]
    stand_in_note: ClassVar[str | None] = None
    compute: ClassVar[dict[str, str]] = {"device": "cpu", "dtype": "float32"}
    uses_threads: ClassVar[bool] = False
    image_size: list[int]
    fit_record: dict[str, Any]

    @classmethod
    @abstractmethod
    def settings(cls, flags: Any) -> dict[str, Any]:
        """Return all that determines the fit; `fit_frames` and `seed` say which frames it sees."""

    @classmethod
    @abstractmethod
    def fit(
        cls, flags: Any, blocks: Iterable[UInt8[np.ndarray, "_ H W 3"]], num_frames: int
    ) -> "FittedEncoder":
        """Fit it to training frames, which are read once, block by block.

        Raises:
            InvalidInputError: the frames are too few or too small for the settings.
        """

    @classmethod
    @abstractmethod
    def from_arrays(
        cls, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> "FittedEncoder":
        """Rebuild it; `load` has checked the arrays."""

    @property
    @abstractmethod
    def embedding_dim(self) -> int:
        """D."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """What a cache or checkpoint stores of it, by cache array name."""

    @abstractmethod
    def encode(self, images: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B D"]:
        """Embed RGB images, as float32."""

    @classmethod
    def load(cls, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "FittedEncoder":
        """Rebuild the encoder from a manifest's record and its arrays.

        Raises:
            InvalidInputError: an array is not there, or they are not those of the record.
        """
        require_arrays(f"the {cls.kind} encoder needs", cls.array_names, arrays)
        encoder = cls.from_arrays(record, {name: np.asarray(arrays[name]) for name in arrays})
        require_weights(f"the {cls.kind} arrays", encoder.weights_sha256, record)
        return encoder

    @property
    def name(self) -> str:
        """The `--vision_model_name`."""
        return self.kind

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of its arrays' numbers, one array behind the other."""
        return sha256_of(self.arrays[name] for name in self.array_names)

    def encode_grid(
        self, images: UInt8[np.ndarray, "B H W 3"], grid_size: int
    ) -> tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B cells D"]]:
        """Refuse, unless the kind has a map: this one embeds an image as a whole."""
        raise self.no_map(grid_size)

    @classmethod
    def no_map(cls, grid_size: int) -> InvalidInputError:
        """Build the error for a grid that is asked of a kind without a map."""
        return InvalidInputError(
            f"--embedding_grid {grid_size}: {cls.kind} has no map to divide into cells, and the "
            "largest grid is 1; take an encoder that has one, like efficientnet-lite0"
        )

    def encode_blocks(
        self, blocks: Iterable[UInt8[np.ndarray, "B H W 3"]], block_size: int
    ) -> Iterator[Float[np.ndarray, "B D"]]:
        """Embed one block after another: decoding takes longer, and has threads of its own."""
        return map(self.encode, blocks)

    def grid_blocks(
        self, blocks: Iterable[UInt8[np.ndarray, "B H W 3"]], block_size: int, grid_size: int
    ) -> Iterator[tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B cells D"]]]:
        """Embed one block after another, cells included."""
        return (self.encode_grid(images, grid_size) for images in blocks)

    def record(self) -> dict[str, Any]:
        """Return what the manifest says about the encoder."""
        return {
            "name": self.kind,
            "kind": self.kind,
            "revision": None,
            "weights_sha256": self.weights_sha256,
            "pooling": None,
            "image_size": self.image_size,
            "embedding_dim": self.embedding_dim,
            "preprocessing": self.preprocessing,
            "fit": self.fit_record,
            "is_stand_in": self.stand_in_note is not None,
            "note": self.stand_in_note,
        }


def require_arrays(who_needs: str, names: Iterable[str], arrays: Mapping[str, Any]) -> None:
    """Check that what was fitted is all there.

    Raises:
        InvalidInputError: an array of these names is missing.
    """
    missing = set(names) - set(arrays)
    if missing:
        raise InvalidInputError(
            f"{who_needs} the arrays {sorted(missing)}; the cache or checkpoint is incomplete"
        )


def require_weights(what: str, found: str, record: Mapping[str, Any]) -> None:
    """Check the hash of arrays that were fitted.

    Raises:
        InvalidInputError: it is not the record's `weights_sha256`.
    """
    if found != record["weights_sha256"]:
        raise InvalidInputError(
            f"{what} have hash {found[:12]}, but the record says "
            f"{record['weights_sha256'][:12]}; they belong to another cache"
        )


def sha256_of(arrays: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 of arrays' numbers, one array behind the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
