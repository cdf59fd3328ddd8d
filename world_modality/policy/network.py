"""The policy of all four arms: one transformer trunk over observation, world and query tokens."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from world_modality.arms import ARMS, MODEL_TYPES, ModelType
from world_modality.system.errors import InvalidInputError, missing_key


@dataclass(frozen=True)
class TrunkHidden:
    """The trunk's output at the tokens that say what is asked, what is there and what comes.

    Each is None where the arm has no such token. A further head reads these, so that the trunk runs
    once for all heads.

    Attributes:
        lang: at LANG, which attends to itself alone: a function of the instruction.
        world: at WORLD_CUR.
        future: at FUT×K, which see LANG, OBS, WORLD_CUR and each other.
    """

    lang: Float[Tensor, "B 1 d"] | None
    world: Float[Tensor, "B 1 d"] | None
    future: Float[Tensor, "B K d"] | None

    def select(self, samples: Int[Tensor, " B2"]) -> "TrunkHidden":
        """Return the states of these samples of the batch."""
        return TrunkHidden(
            lang=None if self.lang is None else self.lang[samples],
            world=None if self.world is None else self.world[samples],
            future=None if self.future is None else self.future[samples],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["TrunkHidden"]) -> "TrunkHidden":
        """Join the states of several batches of one policy; at least one batch."""

        def joined(states: list[Tensor | None]) -> Tensor | None:
            given = [state for state in states if state is not None]
            return torch.cat(given) if given else None

        return cls(
            lang=joined([part.lang for part in parts]),
            world=joined([part.world for part in parts]),
            future=joined([part.future for part in parts]),
        )


@dataclass(frozen=True)
class PolicyOutput:
    """What the policy predicts.

    Attributes:
        actions: standardised action chunk.
        world_logits: of the future tokens; None for arm A.
        hidden: what further heads read.
    """

    actions: Float[Tensor, "B H A"]
    world_logits: Float[Tensor, "B K V"] | None
    hidden: TrunkHidden


@dataclass(frozen=True)
class PolicyConfig:
    """All that determines the policy's shape; a checkpoint stores it whole."""

    model_type: ModelType
    embedding_dim: int
    state_dim: int
    action_dim: int
    num_world_tokens: int
    instruction_dim: int
    context_frames: int
    chunk_size: int
    future_offset: int
    future_stride: int
    d_model: int
    n_layers: int
    n_heads: int
    dropout: float
    world_input_scale: float
    world_input_dropout: float
    world_input_layernorm: bool
    block_world_to_action: bool

    def __post_init__(self) -> None:
        for name in ("context_frames", "chunk_size", "future_offset", "future_stride", "n_layers"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.n_heads < 1 or self.d_model % self.n_heads:
            raise InvalidInputError(
                f"--d_model {self.d_model} must be a multiple of --n_heads {self.n_heads}"
            )
        for name in ("dropout", "world_input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInputError(f"--{name} must lie in [0, 1), not {getattr(self, name)}")

    @property
    def reads_language(self) -> bool:
        """Whether the instruction's embedding is an input."""
        return self.instruction_dim > 0

    @property
    def reads_world(self) -> bool:
        """Whether the current world token is an input."""
        return ARMS[self.model_type].reads_world

    @property
    def predicts_world(self) -> bool:
        """Whether future world tokens are predicted."""
        return ARMS[self.model_type].predicts_world


class Standardizer(nn.Module):
    """(x - mean) / std with statistics of training frames, kept with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def forward(self, values: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
        """Standardise values in raw units, in float32."""
        return (values.float() - self.mean) / self.std

    def inverse(self, values: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
        """Return standardised values to raw units."""
        return values * self.std + self.mean


class WorldPolicy(nn.Module):
    """`[LANG] OBS×T [WORLD_CUR] [FUT×K] ACT×H` through a pre-norm transformer encoder.

    Who attends to whom: LANG to itself; OBS to LANG and OBS; WORLD_CUR to these and itself;
    FUT and ACT, two groups of learned queries, to all three and their own group. FUT and ACT do not
    see each other, so the future loss reaches the actions only through the shared weights, and
    `w_t` only through WORLD_CUR: B minus A is the auxiliary loss alone, C minus B the input alone.
    `block_world_to_action` closes the remaining path, after which the actions do not depend on
    `w_t` at all.

    The modules that all arms share are created first and in one order, so that arms trained with
    the same seed start from the same shared weights.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.d_model
        self.embedding_norm = Standardizer(config.embedding_dim)
        self.state_norm = Standardizer(config.state_dim)
        self.action_norm = Standardizer(config.action_dim)
        self.trunk = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                d_model=dim,
                nhead=config.n_heads,
                dim_feedforward=4 * dim,
                dropout=config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            ),
            num_layers=config.n_layers,
            norm=nn.LayerNorm(dim),
            enable_nested_tensor=False,
        )
        self._redraw_layers()
        self.embedding_in = nn.Linear(config.embedding_dim, dim)
        self.state_in = nn.Linear(config.state_dim, dim)
        self.obs_position = _queries(config.context_frames, dim)
        self.act_queries = _queries(config.chunk_size, dim)
        self.action_head = nn.Linear(dim, config.action_dim)
        if config.reads_language:
            self.instruction_norm = Standardizer(config.instruction_dim)
            self.instruction_in = nn.Linear(config.instruction_dim, dim)
            self.instruction_position = _queries(1, dim)
        if config.predicts_world:
            self.fut_queries = _queries(config.future_offset, dim)
            self.world_head = nn.Linear(dim, config.num_world_tokens)
        if config.reads_world:
            self.world_embedding = nn.Embedding(config.num_world_tokens, dim)
            nn.init.normal_(self.world_embedding.weight, std=0.02)
            self.world_position = _queries(1, dim)
            self.world_norm = nn.LayerNorm(dim) if config.world_input_layernorm else nn.Identity()
        self.register_buffer("_blocked", self._attention_mask(), persistent=False)

    def _redraw_layers(self) -> None:
        # nn.TransformerEncoder copies one layer n times; each layer gets a draw of its own.
        for parameter in self.trunk.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def _attention_mask(self) -> Bool[Tensor, "L L"]:
        """Return True where the row's token must not attend to the column's."""
        config = self.config
        kinds = ["lang"] if config.reads_language else []
        kinds += ["obs"] * config.context_frames
        kinds += ["world"] if config.reads_world else []
        kinds += ["fut"] * config.future_offset if config.predicts_world else []
        kinds += ["act"] * config.chunk_size
        seen = {"lang", "obs"}
        visible = {
            "lang": {"lang"},
            "obs": seen,
            "world": seen | {"world"},
            "fut": seen | {"world", "fut"},
            "act": seen | ({"act"} if config.block_world_to_action else {"world", "act"}),
        }
        return torch.tensor([[column not in visible[row] for column in kinds] for row in kinds])

    def forward(
        self,
        embeddings: Float[Tensor, "B T D"],
        states: Float[Tensor, "B T S"],
        world_tokens: Int[Tensor, " B"],
        instructions: Float[Tensor, "B L"] | None = None,
    ) -> PolicyOutput:
        """Predict an action chunk and the future world tokens.

        Args:
            embeddings: frame embeddings as cached (not standardised), oldest first.
            states: robot states in raw units, oldest first.
            world_tokens: `w_t`, the token of the newest frame; only arm C reads it.
            instructions: embedding of each sample's instruction, as cached; only for a policy that
                reads language, and then required.

        Raises:
            ValueError: a policy that reads language got no instructions.
        """
        config = self.config
        batch = len(embeddings)
        obs = self.embedding_in(self.embedding_norm(embeddings))
        tokens = [obs + self.state_in(self.state_norm(states)) + self.obs_position]
        if config.reads_language:
            if instructions is None:
                raise ValueError("this policy reads language; give it instruction embeddings")
            lang = self.instruction_in(self.instruction_norm(instructions))
            tokens.insert(0, lang[:, None] + self.instruction_position)
        if config.reads_world:
            tokens.append(self._world_input(world_tokens))
        if config.predicts_world:
            tokens.append(self.fut_queries.expand(batch, -1, -1))
        tokens.append(self.act_queries.expand(batch, -1, -1))
        hidden = self.trunk(torch.cat(tokens, dim=1), mask=self._blocked, is_causal=False)
        by_kind = self._by_kind(hidden)
        return PolicyOutput(
            actions=self.action_head(hidden[:, -config.chunk_size :]),
            world_logits=None if by_kind.future is None else self.world_head(by_kind.future),
            hidden=by_kind,
        )

    def _by_kind(self, hidden: Float[Tensor, "B tokens d"]) -> TrunkHidden:
        config = self.config
        obs_end = config.reads_language + config.context_frames
        fut_start = obs_end + config.reads_world
        fut_end = fut_start + config.future_offset
        return TrunkHidden(
            lang=hidden[:, :1] if config.reads_language else None,
            world=hidden[:, obs_end:fut_start] if config.reads_world else None,
            future=hidden[:, fut_start:fut_end] if config.predicts_world else None,
        )

    def _world_input(self, world_tokens: Int[Tensor, " B"]) -> Float[Tensor, "B 1 d"]:
        config = self.config
        content = config.world_input_scale * self.world_norm(self.world_embedding(world_tokens))
        if self.training and config.world_input_dropout > 0:
            # The token is dropped whole, as a modality, and not rescaled: the policy has to act
            # without it, not on a louder copy of it.
            shape = (len(content), 1)
            kept = torch.rand(shape, device=content.device) >= config.world_input_dropout
            content = content * kept
        return content[:, None] + self.world_position


def _queries(count: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, dim) * 0.02)


def policy_config_from_dict(values: dict[str, object]) -> PolicyConfig:
    """Rebuild the config that a checkpoint stores.

    Raises:
        InvalidInputError: a field is missing or unknown.
        MissingKeyError: this version has no such arm.
    """
    expected = {field.name for field in dataclasses.fields(PolicyConfig)}
    if set(values) != expected:
        raise InvalidInputError(
            f"the checkpoint's policy config has fields {sorted(set(values) ^ expected)} that this "
            "version lacks or adds; use the version that wrote it, or train again"
        )
    if (arm := values["model_type"]) not in MODEL_TYPES:
        raise missing_key("arm", str(arm), MODEL_TYPES, "this version")
    return PolicyConfig(**values)  # type: ignore[arg-type]
