"""EfficientNet-Lite0's network: timm's layers, the package's weights, made fast for inference."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

# On a CPU, the activations of more images at a time leave its cache, which is slower.
CPU_BATCH = 16


class FeatureNetwork(nn.Module):
    """The network up to one of its maps, with the interface of transformers' models.

    Convolutions run channels-last, batch norms are part of them: 2 to 3 times as fast on a CPU as
    the network as it was saved, with the same numbers to float rounding.

    Args:
        weights: the package's file.
        num_stages: of the network's seven; the last one is followed by the head.
        dim: D of the map there.
    """

    def __init__(self, weights: Path, num_stages: int, dim: int) -> None:
        super().__init__()
        network = load_network(weights)
        fold_batch_norms(network)
        network.to(memory_format=torch.channels_last)
        layers = [network.conv_stem, network.bn1, *network.blocks[:num_stages]]
        if num_stages == len(network.blocks):
            layers += [network.conv_head, network.bn2]
        self.layers = nn.Sequential(*layers)
        self.config = SimpleNamespace(hidden_size=dim)

    def forward(self, pixel_values: Float[torch.Tensor, "B 3 H W"]) -> SimpleNamespace:
        """Return `last_hidden_state` [B, D, h, w]."""
        pixels = pixel_values.contiguous(memory_format=torch.channels_last)
        parts = pixels.split(CPU_BATCH) if pixels.device.type == "cpu" else (pixels,)
        return SimpleNamespace(last_hidden_state=torch.cat([self.layers(part) for part in parts]))


def load_network(weights: Path) -> Any:
    """Return timm's network without the classifier, as it was trained, in eval mode.

    The network that the weights were saved from (the package efficientnet-lite-pytorch) has the
    same layers in the same order, under other names.
    """
    import timm

    found = torch.load(weights, map_location="cpu", weights_only=True)
    tensors = [tensor for name, tensor in found.items() if not name.startswith("_fc.")]
    with torch.random.fork_rng(devices=[]):  # it draws weights, which are then replaced
        network = timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool="")
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    return network.eval()


def fold_batch_norms(network: nn.Module) -> None:
    """Make each batch norm part of the convolution before it, in place; its activation stays."""
    from timm.layers import BatchNormAct2d

    for module in list(network.modules()):
        for (name, layer), (next_name, following) in pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(following, BatchNormAct2d):
                setattr(module, name, nn.utils.fuse_conv_bn_eval(layer, following))
                setattr(module, next_name, following.act)
