"""The random draws of a forward pass, made apart from it: for passes of several seeds at once.

A policy draws in dropout, in attention's dropout and with `torch.rand`. `DrawRecorder` watches one
pass and learns the draws in their order; each can then be repeated from any state of torch's
generators, by the very kernel that draws in the pass. `StackedPass` computes a pass that takes its
draws from outside and leaves the generators alone, so that it may run under `torch.vmap`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Draw = Callable[[], Tensor]


class RandomState:
    """One seed's own state of torch's generators, as they are when it is made.

    Args:
        device: whose generator draws, beside the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.keep()

    def keep(self) -> None:
        """Remember the generators as they are now."""
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state(self._device) if self._has_gpu else None

    def set(self) -> None:
        """Put torch's generators into this state."""
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu, self._device)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let torch draw from this state inside the block, and remember where it stopped."""
        self.set()
        yield
        self.keep()

    @property
    def _has_gpu(self) -> bool:
        return self._device.type == "cuda"


class DrawRecorder(TorchFunctionMode):
    """Learns the draws of the passes that are computed while it is entered.

    Attributes:
        draws: in order; each returns what its place in the pass is multiplied by, or compared with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.rand:
            self.draws.append(partial(torch.rand, *args, **kwargs))
        elif func is functional.dropout and _drops(kwargs["p"], kwargs["training"]):
            # The kernel's order of the numbers depends on the input's strides and dtype.
            self.draws.append(partial(_dropout_mask, torch.ones_like(args[0]), kwargs["p"]))
        elif func is functional.multi_head_attention_forward:
            attention = _SelfAttention(args, kwargs)
            if attention.drops:
                self.draws.append(attention.draw)
        return func(*args, **kwargs)


class StackedPass(TorchFunctionMode):
    """Makes what is computed while it is entered fit for `torch.vmap` over seeds.

    Args:
        drawn: the draws of the pass, in the order of `DrawRecorder.draws`.
    """

    def __init__(self, drawn: Sequence[Tensor]) -> None:
        super().__init__()
        self._drawn = iter(drawn)

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.rand:
            return next(self._drawn)
        if func is functional.dropout and _drops(kwargs["p"], kwargs["training"]):
            return (args[0] * next(self._drawn)).to(args[0].dtype)
        if func is functional.multi_head_attention_forward:
            attention = _SelfAttention(args, kwargs)
            return attention.forward(next(self._drawn) if attention.drops else None), None
        if func is functional.linear:
            return _linear(*args, **kwargs)
        return func(*args, **kwargs)


class _SelfAttention:
    """One call of `multi_head_attention_forward`, as a TransformerEncoderLayer makes it."""

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self._query, key, value, self._dim, self._num_heads = args[:5]
        self._in_proj, self._in_bias, bias_k, bias_v, add_zero, self._dropout = args[5:11]
        self._out_proj, self._out_bias = args[11:13]
        self._mask = kwargs["attn_mask"]
        self.drops = _drops(self._dropout, kwargs["training"])
        assert self._query is key, "self-attention alone is computed here"
        assert self._query is value, "self-attention alone is computed here"
        others = (bias_k, bias_v, kwargs["key_padding_mask"])
        assert all(part is None for part in others), "no padding, no key and value biases"
        others = (add_zero, kwargs["need_weights"], kwargs["use_separate_proj_weight"])
        assert not any(others), "no appended zeros, no returned weights, one projection"

    def draw(self) -> Float[Tensor, "B heads L L"]:
        """Ask the attention kernel, which keeps its mask to itself, for the mask it draws now.

        With queries of 0 every visible place has the same weight, and with the identity as values
        the output is that weight where a place is kept and 0 where it is dropped.
        """
        length, batch, _ = self._query.shape
        width = self._dim // self._num_heads
        shape = (batch, self._num_heads, length, width)
        # With gradients, since the kernel is chosen by them.
        blank = self._query.new_zeros(shape, requires_grad=True)
        identity = torch.eye(length, device=blank.device)
        state = RandomState(blank.device)
        parts = []
        with torch.enable_grad():
            for columns in identity.split(width, dim=1):
                state.set()
                values = functional.pad(columns, (0, width - columns.shape[1])).expand(shape)
                output = functional.scaled_dot_product_attention(
                    blank, blank, values, self._mask, self._dropout
                )
                parts.append(output.detach()[..., : columns.shape[1]])
        return _scaled(torch.cat(parts, dim=-1), self._dropout)

    def forward(self, drawn: Float[Tensor, "B heads L L"] | None) -> Float[Tensor, "L B d"]:
        """Compute the attention (Vaswani et al., 2017, eq. 1) with this mask on its weights."""
        projected = _linear(self._query, self._in_proj, self._in_bias)
        heads = projected.unflatten(-1, (3, self._num_heads, -1))
        query, key, value = heads.permute(2, 1, 3, 0, 4)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = torch.softmax(scores + self._mask, dim=-1)
        if drawn is not None:
            weights = weights * drawn
        output = (weights.to(value.dtype) @ value).permute(2, 0, 1, 3).flatten(2)
        return _linear(output, self._out_proj, self._out_bias)


def _linear(
    inputs: Float[Tensor, "*rows i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "*rows o"]:
    # All rows as one matrix: vmap would copy the weights for each sample of the batch.
    product = inputs.flatten(0, -2) @ weight.t()
    return (product + bias.to(product.dtype)).unflatten(0, inputs.shape[:-1])


def _dropout_mask(ones: Float[Tensor, "..."], p: float) -> Float[Tensor, "..."]:
    mask = functional.dropout(ones, p)
    return mask if mask.dtype == torch.float32 else _scaled(mask, p)


def _scaled(kept: Float[Tensor, "..."], p: float) -> Float[Tensor, "..."]:
    # In float32: bfloat16 would round the factor itself.
    return (kept != 0).float() / (1 - p)


def _drops(p: float, training: bool) -> bool:
    return training and p > 0
