"""What turns a frame into an embedding: the interface, and the table of all kinds.

A kind is a row of `ENCODERS`: a function that builds it, or a class that is fitted to the dataset
(`FittedEncoder`), in a module of its own; flags of its own are a dataclass beside it that
`VisionEncoderFlags` inherits.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from world_modality.encode.efficientnet_lite0 import (
    EfficientNetFlags,
    build_efficientnet_lite0,
    efficientnet_flags,
)
from world_modality.encode.fitted_encoder import FittedEncoder
from world_modality.encode.pixel_pca import PixelPCA, PixelPcaFlags
from world_modality.encode.random_vit import RandomVitFlags, build_random_vit, random_vit_flags
from world_modality.system.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

Pooling = Literal["cls", "mean"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]


@runtime_checkable
class VisionEncoder(Protocol):
    """Embeds camera frames."""

    @property
    def name(self) -> str:
        """The `--vision_model_name`."""

    @property
    def embedding_dim(self) -> int:
        """D."""

    @property
    def stand_in_note(self) -> str | None:
        """What every output says where this is no pretrained encoder; None where it is one."""

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a cache or checkpoint stores of it, by cache array name."""

    @property
    def compute(self) -> dict[str, str]:
        """Device and number format that it computes with."""

    @property
    def uses_threads(self) -> bool:
        """Whether several threads embed a frame sooner than one."""

    def encode(self, images: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B D"]:
        """Embed RGB images, as float32."""

    def encode_blocks(
        self, blocks: Iterable[UInt8[np.ndarray, "B H W 3"]], block_size: int
    ) -> Iterator[Float[np.ndarray, "B D"]]:
        """Embed block after block, all but the last of `block_size` images, as fast as it can."""

    def encode_grid(
        self, images: UInt8[np.ndarray, "B H W 3"], grid_size: int
    ) -> tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B cells D"]]:
        """Embed images as a whole and cell by cell, from one pass of the model; float32.

        Args:
            images: RGB.
            grid_size: g.

        Returns:
            What `encode` gives, and the exact area averages of the model's map (patch tokens, or
            a convolutional network's output) over g×g cells of equal size, row by row.

        Raises:
            InvalidInputError: the encoder has no map, or one of fewer than g rows or columns.
        """

    def grid_blocks(
        self, blocks: Iterable[UInt8[np.ndarray, "B H W 3"]], block_size: int, grid_size: int
    ) -> Iterator[tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B cells D"]]]:
        """Give what `encode_grid` gives for block after block, as `encode_blocks` does."""

    def record(self) -> dict[str, Any]:
        """Return what the manifest says about it; with `arrays`, enough for `load_encoder`."""


@dataclass(frozen=True, kw_only=True)
class VisionEncoderFlags(EfficientNetFlags, RandomVitFlags, PixelPcaFlags):
    """Flags of the vision encoder."""

    vision_model_name: str = "facebook/dinov2-base"
    """Hub name or local folder of a transformers vision model; or, where no hub is reachable,
    efficientnet-lite0 (pretrained), pixel-pca (stand-in) or random-vit (untrained control)."""
    vision_revision: str | None = None
    """Hub revision of the vision model."""
    embedding_pooling: Pooling = "cls"
    """What becomes the embedding: cls is the class token, mean the mean over patch tokens, as
    always for efficientnet-lite0, which has no class token."""
    trust_remote_code: bool = False
    """Run code that the vision model's repository brings along."""
    precision: Precision = "auto"
    """Number format of the matrix products; auto is fp16 on a GPU, and fp32 on a CPU."""
    seed: int = 0
    """Seed of random weights, or of what is fitted."""

    @property
    def fitted_kind(self) -> type[FittedEncoder] | None:
        """The class that is fitted to the dataset; None for an encoder that needs none."""
        return _kind_called(self.vision_model_name).fitted


@dataclass(frozen=True)
class EncoderKind:
    """How encoders of one kind come about: built, or fitted to training frames.

    Attributes:
        build: builds one from its flags on a device.
        own_flags: from a record, the flags of this kind alone that build the encoder again.
        fitted: the class that is fitted instead.
    """

    build: "Callable[[VisionEncoderFlags, torch.device], VisionEncoder] | None" = None
    own_flags: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda record: {}
    fitted: type[FittedEncoder] | None = None


def _build_transformers(flags: VisionEncoderFlags, device: "torch.device") -> VisionEncoder:
    from world_modality.encode.transformers_encoder import load_transformers_encoder

    return load_transformers_encoder(flags, device)


ENCODERS = {
    "pixel-pca": EncoderKind(fitted=PixelPCA),
    "efficientnet-lite0": EncoderKind(build_efficientnet_lite0, efficientnet_flags),
    "random-vit": EncoderKind(build_random_vit, random_vit_flags),
    "transformers": EncoderKind(_build_transformers),
}


def _kind_called(model_name: str) -> EncoderKind:
    return ENCODERS.get(model_name, ENCODERS["transformers"])


def build_encoder(flags: VisionEncoderFlags, device: "torch.device") -> VisionEncoder:
    """Build an encoder that is not fitted to a dataset.

    Raises:
        InvalidInputError: no such model, no hub reachable, or a model that takes no images.
    """
    build = _kind_called(flags.vision_model_name).build
    assert build is not None, f"{flags.vision_model_name} is fitted to a dataset"
    return build(flags, device)


def load_encoder(
    record: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    device: "torch.device",
    *,
    model_name: str | None = None,
    trust_remote_code: bool = False,
) -> VisionEncoder:
    """Rebuild the encoder that wrote a cache, from its manifest or from a checkpoint.

    Args:
        record: the manifest's `encoder` section.
        arrays: those of the cache or checkpoint; a fitted encoder's are among them.
        device: where it runs.
        model_name: the model's folder or hub name where it has moved since.
        trust_remote_code: run code that the model's repository brings along; a file cannot ask for
            that, only the user can.

    Raises:
        InvalidInputError: the kind is unknown, an array is missing, or the weights or the
            preprocessing found are not those of the record.
    """
    if record["kind"] not in ENCODERS:
        raise InvalidInputError(
            f"the vision encoder is of the kind {record['kind']!r}; this release knows "
            f"{', '.join(ENCODERS)}"
        )
    kind = ENCODERS[record["kind"]]
    if kind.fitted is not None:
        return kind.fitted.load(record, arrays)
    flags = VisionEncoderFlags(
        vision_model_name=model_name or record["name"],
        vision_revision=record["revision"] if model_name is None else None,
        embedding_pooling=record["pooling"],
        trust_remote_code=trust_remote_code,
        **kind.own_flags(record),
    )
    encoder = build_encoder(flags, device)
    found = encoder.record()
    for entry in ("weights_sha256", "preprocessing", "image_size"):
        if found[entry] != record[entry]:
            raise InvalidInputError(
                f"the vision encoder {flags.vision_model_name} has {entry} {found[entry]}, but the "
                f"record says {record[entry]}; use the model (and for random-vit the releases of "
                "torch and transformers) that the cache was made with"
            )
    return encoder
