"""`random-vit`: the untrained control, DINOv2's architecture with seeded weights."""

import torch

from world_modality.encode.transformers_encoder import TransformersEncoder, compute_dtype_of
from world_modality.encode.vision_encoders import (
    RANDOM_VIT,
    Pooling,
    Precision,
    RandomVitSize,
    weights_sha256,
)
from world_modality.system.errors import InvalidInputError

# Widths, depths and heads of DINOv2 (Oquab et al., 2023, table 17).
RANDOM_VIT_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


def build_random_vit(
    *,
    size: RandomVitSize,
    image_size: int,
    seed: int,
    pooling: Pooling,
    device: torch.device,
    precision: Precision = "auto",
) -> TransformersEncoder:
    """Build the DINOv2 architecture with seeded random weights and DINOv2's preprocessing.

    Args:
        size: width and depth, as in DINOv2 (small, base) or below it (tiny).
        image_size: side of the centre crop; a multiple of the patch size 14.
        seed: of the weights; they also depend on the releases of torch and transformers.
        pooling: `cls` or `mean`.
        device: where it runs.
        precision: see `load_transformers_encoder`.

    Raises:
        InvalidInputError: the image size is not a multiple of 14.
    """
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    if image_size < 14 or image_size % 14:
        raise InvalidInputError(f"--random_vit_image_size {image_size} is not a multiple of 14")
    width, depth, heads = RANDOM_VIT_SIZES[size]
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=14,
        layerscale_value=1.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Dinov2Model(config)
    processor = BitImageProcessor(
        size={"shortest_edge": round(image_size * 256 / 224)},
        crop_size={"height": image_size, "width": image_size},
        resample=3,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    return TransformersEncoder(
        name=RANDOM_VIT,
        kind=RANDOM_VIT,
        revision=None,
        model=model.eval().to(device),
        processor=processor,
        pooling=pooling,
        device=device,
        compute_dtype=compute_dtype_of(precision, device),
        weights_sha256=weights_sha256(model),
        options={"size": size, "seed": seed},
    )
