"""What identifies a vision model: its weights, and what is done to an image before it."""

import hashlib
from typing import Any

import torch

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
