"""The explaining head: a causal text decoder that reads the trunk's own hidden states."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from coc_vla.head.decoder_config import DecoderConfig
from world_modality.policy.network import TrunkHidden


@dataclass(frozen=True)
class TextPast:
    """What a decoder keeps of the tokens before the next one.

    Attributes:
        layers: the normalised input of each layer, [B, t, d].
        next_place: of the next token if it is no mark.
    """

    layers: list[Tensor]
    next_place: Int[Tensor, " B"]


class TextDecoder(nn.Module):
    """Pre-norm transformer decoder over text tokens (Vaswani et al., 2017), tied to its embedding.

    Token t attends to tokens up to t and to the memory: the trunk's hidden states, projected, each
    with a learned position of its own. A token's own position is its place within its half of a
    step: a phrase learned in one step is known in every other. Output weights are the token
    embedding's (Press and Wolf, 2017). In training some tokens before the next one are hidden, so
    that the decoder has to read the trunk (word dropout: Bowman et al., 2016, section 3.1).
    """

    _causal: Tensor
    _marks: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.d_model
        self.memory_in = nn.Linear(config.view.dim, dim)
        self.token_embedding = nn.Embedding(config.vocabulary_size, dim)
        nn.init.normal_(self.token_embedding.weight, std=dim**-0.5)
        self.text_position = nn.Parameter(torch.randn(config.max_tokens, dim) * 0.02)
        # Over [B, L, d] it zeroes whole tokens.
        self.word_dropout = nn.Dropout1d(config.word_dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                d_model=dim,
                nhead=config.n_heads,
                dim_feedforward=4 * dim,
                dropout=config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.n_layers)
        )
        for layer in self._typed_layers:
            # Dropping attention itself keeps CPUs from the fused kernel: 1.5 times the step.
            layer.self_attn.dropout = layer.multihead_attn.dropout = 0.0
        self.norm = nn.LayerNorm(dim)
        # Last: what is drawn before does not depend on how much is read, so that a model and its
        # control start from the same weights.
        self.memory_position = nn.Parameter(torch.randn(config.view.num_states, dim) * 0.02)
        causal = torch.ones(config.max_tokens, config.max_tokens, dtype=torch.bool).triu(1)
        self.register_buffer("_causal", causal, persistent=False)
        self.register_buffer("_marks", torch.tensor(config.marks), persistent=False)

    def memory(self, hidden: TrunkHidden) -> Float[Tensor, "B M d"]:
        """Project the trunk's states that this decoder reads.

        Raises:
            ValueError: the trunk gave none where the config says that it has them.
        """
        view = self.config.view
        states = [
            state
            for state, is_read in (
                (hidden.lang, view.reads_lang),
                (hidden.world, view.reads_world),
                (hidden.future, view.num_future > 0),
            )
            if is_read and state is not None
        ]
        if sum(state.shape[1] for state in states) != view.num_states:
            raise ValueError(f"the decoder reads {view.num_states} hidden states of the trunk")
        memory: Tensor = self.memory_in(torch.cat(states, dim=1)) + self.memory_position
        return memory

    def forward(
        self, tokens: Int[Tensor, "B L"], memory: Float[Tensor, "B M d"]
    ) -> Float[Tensor, "B L V"]:
        """Return the logits of each next token of at most `max_tokens`, from the begin mark on."""
        length = tokens.shape[1]
        words = self.word_dropout(self.token_embedding(tokens))
        x = self.dropout(words + self.text_position[self._places(tokens)])
        for layer in self.layers:
            x = layer(x, memory, tgt_mask=self._causal[:length, :length])
        return self._logits(x)

    def begin(self, memory: Float[Tensor, "B M d"]) -> TextPast:
        """Return the past of the begin mark: nothing."""
        nothing = [memory[:, :0] for _ in self.layers]
        return TextPast(nothing, torch.zeros(len(memory), dtype=torch.long, device=memory.device))

    def step(
        self, token: Int[Tensor, " B"], memory: Float[Tensor, "B M d"], past: TextPast
    ) -> tuple[Float[Tensor, "B V"], TextPast]:
        """Return the logits that follow the newest token, as `forward` does without dropout.

        `past` is what the call before returned; at the begin mark, what `begin` returns.
        """
        place = past.next_place.masked_fill(torch.isin(token, self._marks), 0)
        x = (self.token_embedding(token) + self.text_position[place])[:, None]
        seen = []
        for layer, before in zip(self._typed_layers, past.layers, strict=True):
            y = layer.norm1(x)
            seen.append(torch.cat([before, y], dim=1))
            x = x + layer.self_attn(y, seen[-1], seen[-1], need_weights=False)[0]
            y = layer.norm2(x)
            x = x + layer.multihead_attn(y, memory, memory, need_weights=False)[0]
            y = layer.norm3(x)
            x = x + layer.linear2(layer.activation(layer.linear1(y)))
        return self._logits(x[:, 0]), TextPast(seen, place + 1)

    def _places(self, tokens: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        index = torch.arange(tokens.shape[1], device=tokens.device)
        is_mark = torch.isin(tokens, self._marks)
        return index - torch.where(is_mark, index, 0).cummax(dim=1).values

    @property
    def _typed_layers(self) -> list[nn.TransformerDecoderLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _logits(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch V"]:
        logits: Tensor = self.norm(x) @ self.token_embedding.weight.T
        return logits
