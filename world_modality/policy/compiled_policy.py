"""A policy whose forward and backward pass torch's inductor has compiled."""

import os
import shutil
from typing import cast

import torch
from torch import nn

from world_modality.system.errors import InvalidInputError

_CXX_COMPILERS = ("g++", "clang++")


def compiled(policy: nn.Module, device: torch.device) -> nn.Module:
    """Return a module that computes as the policy does, with its weights, from compiled kernels.

    Each shape of batch is compiled at its first step; the policy itself stays as it is.

    Raises:
        InvalidInputError: the kernels would be C++, and there is no compiler.
    """
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else list(_CXX_COMPILERS)
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        raise InvalidInputError(
            f"--compile on a CPU needs a C++ compiler, and there is no {' or '.join(compilers)}; "
            "apt-get install g++, or leave out --compile"
        )
    return cast(nn.Module, torch.compile(policy))
