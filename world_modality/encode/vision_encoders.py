"""What turns a frame into an embedding: the interface, and which encoder a name stands for."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8

from world_modality.encode.pixel_pca import KIND as PIXEL_PCA
from world_modality.encode.pixel_pca import PixelPCA
from world_modality.system.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

RANDOM_VIT = "random-vit"
Pooling = Literal["cls", "mean"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]
RandomVitSize = Literal["tiny", "small", "base"]


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

    def encode(self, images: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B D"]:
        """Embed RGB images, as float32."""

    def encode_blocks(
        self, blocks: Iterable[UInt8[np.ndarray, "B H W 3"]], block_size: int
    ) -> Iterator[Float[np.ndarray, "B D"]]:
        """Embed block after block, all but the last of `block_size` images, as fast as it can."""

    def record(self) -> dict[str, Any]:
        """Return what the manifest says about it; with `arrays`, enough for `load_encoder`."""


@dataclass(frozen=True)
class EncoderRequest:
    """The encoder that a command line asks for.

    Attributes:
        name: `facebook/dinov2-*` or another hub name, a local folder, `random-vit` or `pixel-pca`.
        revision: hub revision of the weights.
        pooling: `cls` or `mean`.
        precision: of the matrix products; `auto` is float16 on a GPU, float32 on a CPU.
        trust_remote_code: run code that a model repository brings along.
        seed: of the random weights or of the components.
        random_vit_size: width and depth of `random-vit`.
        random_vit_image_size: side of the image that `random-vit` sees.
    """

    name: str
    revision: str | None = None
    pooling: Pooling = "cls"
    precision: Precision = "auto"
    trust_remote_code: bool = False
    seed: int = 0
    random_vit_size: RandomVitSize = "small"
    random_vit_image_size: int = 224


def build_encoder(request: EncoderRequest, device: "torch.device") -> VisionEncoder:
    """Build any encoder but `pixel-pca`, which `PixelPCA.fit_to` fits to a dataset.

    Raises:
        InvalidInputError: no such model, no hub reachable, or a model that takes no images.
    """
    if request.name == RANDOM_VIT:
        from world_modality.encode.random_vit import build_random_vit

        return build_random_vit(
            size=request.random_vit_size,
            image_size=request.random_vit_image_size,
            seed=request.seed,
            pooling=request.pooling,
            device=device,
            precision=request.precision,
        )
    from world_modality.encode.transformers_encoder import load_transformers_encoder

    return load_transformers_encoder(
        request.name,
        pooling=request.pooling,
        device=device,
        precision=request.precision,
        revision=request.revision,
        trust_remote_code=request.trust_remote_code,
    )


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
        arrays: the encoder's `arrays`; only `pixel-pca` has some.
        device: where it runs.
        model_name: the model's folder or hub name where it has moved since.
        trust_remote_code: run code that the model's repository brings along; a file cannot ask for
            that, only the user can.

    Raises:
        MissingKeyError: an array of the record's kind is not among `arrays`.
        InvalidInputError: the weights or the preprocessing found are not those of the record.
    """
    if record["kind"] == PIXEL_PCA:
        missing = {"pixel_pca_components", "pixel_pca_mean"} - set(arrays)
        if missing:
            raise InvalidInputError(
                f"the pixel-pca encoder needs the arrays {sorted(missing)}; the cache or "
                "checkpoint is incomplete"
            )
        return PixelPCA.from_arrays(
            dict(record), arrays["pixel_pca_components"], arrays["pixel_pca_mean"]
        )
    is_random = record["kind"] == RANDOM_VIT
    request = EncoderRequest(
        name=model_name or record["name"],
        revision=record["revision"] if model_name is None else None,
        pooling=record["pooling"],
        trust_remote_code=trust_remote_code,
        seed=record.get("seed", 0),
        random_vit_size=record.get("size", "small"),
        random_vit_image_size=record["image_size"][0] if is_random else 224,
    )
    encoder = build_encoder(request, device)
    found = encoder.record()
    for entry in ("weights_sha256", "preprocessing", "image_size"):
        if found[entry] != record[entry]:
            raise InvalidInputError(
                f"the vision encoder {request.name} has {entry} {found[entry]}, but the record "
                f"says {record[entry]}; use the model (and for random-vit the releases of torch "
                "and transformers) that the cache was made with"
            )
    return encoder


PREPROCESSING_KEYS = (
    *(
        "do_resize",
        "size",
        "resample",
        "do_center_crop",
        "crop_size",
        "do_rescale",
        "rescale_factor",
    ),
    *("do_normalize", "image_mean", "image_std"),
)


def weights_sha256(model: Any) -> str:
    """Return the SHA-256 of a torch module's parameters and buffers, names and dtypes included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def preprocessing_of(processor: Any) -> dict[str, Any]:
    """Return the processor's settings as plain JSON, the same for every transformers release."""
    found: dict[str, Any] = {}
    for key in PREPROCESSING_KEYS:
        value = getattr(processor, key, None)
        if value is None:
            continue
        if key in ("size", "crop_size"):
            value = {k: int(v) for k, v in dict(value).items() if v is not None}
        elif key in ("image_mean", "image_std"):
            value = [float(v) for v in value]
        else:
            value = int(value) if key == "resample" else value
        found[key] = value
    return found
