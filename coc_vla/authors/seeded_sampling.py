"""Sampling in which every sequence of a batch has a seed of its own."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int


class SeededSampling:
    """Adds to each row's scores what makes its greatest score a sample of its softmax.

    The Gumbel-max trick (Gumbel, 1954; Maddison et al., 2014, eq. 2): the argmax of
    `scores / temperature + g`, g independent Gumbel(0, 1), is distributed as
    `softmax(scores / temperature)`. The noise of a row comes from the row's own generator, on the
    CPU, so that it depends neither on the device nor on the other rows.

    transformers calls it as a logits processor, once a token.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float = 1.0) -> None:
        """Prepare a generator for each row.

        Args:
            seeds: one a row.
            temperature: above 0.
            top_p: only the smallest set of tokens whose probabilities add up to it is drawn from
                (Holtzman et al., 2020).
        """
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._top_p = top_p

    def __call__(
        self, input_ids: Int[torch.Tensor, "B L"], scores: Float[torch.Tensor, "B V"]
    ) -> Float[torch.Tensor, "B V"]:
        """Return the scores with the noise; a token that is ruled out stays so."""
        scaled = scores.float() / self._temperature
        if self._top_p < 1.0:
            scaled = self._limited(scaled)
        rows = []
        for generator in self._generators:
            # 0 excluded: its logarithm is infinite.
            uniform = torch.rand(scores.shape[1], generator=generator).clamp_min(1e-20)
            rows.append(-torch.log(-torch.log(uniform)))
        noise = torch.stack(rows).to(scaled.device)
        return scaled + noise

    def _limited(self, scaled: Float[torch.Tensor, "B V"]) -> Float[torch.Tensor, "B V"]:
        ordered, order = scaled.sort(dim=1, descending=True)
        shares = ordered.softmax(dim=1)
        # A token stays while those before it have not reached top_p.
        is_out = shares.cumsum(dim=1) - shares >= self._top_p
        return scaled.masked_fill(is_out.scatter(1, order, is_out), -torch.inf)
