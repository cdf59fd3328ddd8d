"""`random-vit`: the untrained control, DINOv2's architecture with seeded weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from world_modality.system.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

    from world_modality.encode.network_encoder import NetworkEncoder
    from world_modality.encode.vision_encoders import VisionEncoderFlags

KIND = "random-vit"
NOTE = (
    "random-vit is a control: the DINOv2 architecture with untrained weights, never a DINOv2 result"
)
RandomVitSize = Literal["tiny", "small", "base"]
# Widths, depths and heads of DINOv2 (Oquab et al., 2023, table 17); `tiny` is below it.
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


@dataclass(frozen=True, kw_only=True)
class RandomVitFlags:
    """Flags of `random-vit` alone."""

    random_vit_size: RandomVitSize = "small"
    """Width and depth of random-vit."""
    random_vit_image_size: int = 224
    """Side of the image that random-vit sees, a multiple of 14."""


def random_vit_flags(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that build the encoder of a record again."""
    return {
        "random_vit_size": record["size"],
        "random_vit_image_size": record["image_size"][0],
        "seed": record["seed"],
    }


def build_random_vit(flags: "VisionEncoderFlags", device: "torch.device") -> "NetworkEncoder":
    """Build the DINOv2 architecture with seeded random weights and DINOv2's preprocessing.

    The weights also depend on the releases of torch and transformers.

    Raises:
        InvalidInputError: the image size is not a multiple of 14.
    """
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    from world_modality.encode.network_encoder import NetworkEncoder

    image_size = flags.random_vit_image_size
    if image_size < 14 or image_size % 14:
        raise InvalidInputError(f"--random_vit_image_size {image_size} is not a multiple of 14")
    width, depth, heads = SIZES[flags.random_vit_size]
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=14,
        layerscale_value=1.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(flags.seed)
        model = Dinov2Model(config)
    processor = BitImageProcessor(
        size={"shortest_edge": round(image_size * 256 / 224)},
        crop_size={"height": image_size, "width": image_size},
        resample=3,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    return NetworkEncoder.of(
        model,
        processor,
        flags,
        device,
        kind=KIND,
        name=KIND,
        revision=None,
        options={"size": flags.random_vit_size, "seed": flags.seed},
        stand_in_note=NOTE,
    )
