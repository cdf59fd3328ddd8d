"""What an image processor does, as tensor operations on the encoder's device.

transformers' fast processors are such operations; a slow one (Pillow and numpy) has a fast sibling
with the same settings. Resized pixels are rounded otherwise there: by two of 255 levels at most
for noise, the worst case, in the tests.
"""

from typing import Any

import torch
from jaxtyping import Float, UInt8


def on_device_processor(processor: Any) -> Any | None:
    """Return the processor's form that runs on any device, None where it has none.

    Args:
        processor: an image processor of the transformers library.
    """
    import transformers
    from transformers.image_processing_utils_fast import BaseImageProcessorFast

    if isinstance(processor, BaseImageProcessorFast):
        return processor
    fast = getattr(transformers, f"{type(processor).__name__}Fast", None)
    return None if fast is None else fast(**processor.to_dict())


def preprocess_on_device(
    processor: Any, images: UInt8[torch.Tensor, "B H W 3"]
) -> Float[torch.Tensor, "B 3 h w"]:
    """Resize, crop, rescale and normalise images, on the device where they are.

    Args:
        processor: from `on_device_processor`.
        images: RGB; sent as uint8 they are a quarter of the bytes.
    """
    batch = images.permute(0, 3, 1, 2).contiguous()
    pixels: torch.Tensor = processor(
        list(batch), return_tensors="pt", input_data_format="channels_first", device=batch.device
    )["pixel_values"]
    return pixels
