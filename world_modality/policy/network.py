"""The policy of all arms: one transformer trunk over observation, world and query tokens."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from world_modality.arms import VECTOR_TARGETS, WorldTarget
from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import Batch, FrameTensors
from world_modality.policy.config import PolicyConfig
from world_modality.policy.heads import (
    Losses,
    ValidCounts,
    build_action_head,
    change_token_loss,
    future_is_inside,
    vector_loss,
    world_loss,
)

# Share of the training samples whose FUT is the true future, where the actions attend to it.
TRUE_FUTURE_SHARE = 0.5


@dataclass(frozen=True)
class TrunkHidden:
    """The trunk's output at the tokens that say what is asked, what is there and what comes.

    Each is None where the arm has no such token. A further head reads these, so that the trunk runs
    once for all heads.

    Attributes:
        lang: at LANG, which attends to itself alone: a function of the instruction.
        world: at the newest frame's W world tokens, which see those of earlier frames.
        future: at FUT×K×W, which see LANG, OBS, WORLD and each other.
    """

    lang: Float[Tensor, "B 1 d"] | None
    world: Float[Tensor, "B W d"] | None
    future: Float[Tensor, "B KW d"] | None

    def select(self, samples: Int[Tensor, " B2"]) -> "TrunkHidden":
        """Return the states of these samples of the batch."""
        return TrunkHidden(*(None if one is None else one[samples] for one in self._states()))

    @classmethod
    def concatenate(cls, parts: Sequence["TrunkHidden"]) -> "TrunkHidden":
        """Join the states of several batches of one policy; at least one batch."""
        kinds = zip(*(part._states() for part in parts), strict=True)
        given = [[one for one in states if one is not None] for states in kinds]
        return cls(*(torch.cat(states) if states else None for states in given))

    def _states(self) -> tuple[Tensor | None, ...]:
        return self.lang, self.world, self.future


@dataclass(frozen=True)
class PolicyOutput:
    """What the policy predicts.

    Attributes:
        actions: standardised action chunk.
        action_states: what the action head made them of.
        world_logits: of the future tokens; None for an arm that predicts none.
        hidden: what further heads read.
        futures: by name the other targets that are predicted: standardised vectors [B, K, D], or
            logits of the change token [B, X].
    """

    actions: Float[Tensor, "B H A"]
    action_states: Float[Tensor, "B H d"]
    world_logits: Float[Tensor, "B K *W V"] | None
    hidden: TrunkHidden
    futures: dict[str, Tensor] = field(default_factory=dict)


class Standardizer(nn.Module):
    """(x - mean) / std with statistics of training frames, kept with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def forward(self, values: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
        """Standardise values in raw units, in float32."""
        return (values.float() - self.mean) / self.std

    def inverse(self, values: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
        """Return standardised values to raw units."""
        return values * self.std + self.mean


class WorldPolicy(nn.Module):
    """`[LANG] OBS×T×P [WORLD×R×W] [FUT×K×W] ACT×H` through a pre-norm transformer encoder.

    P is the number of a frame's vectors, or less where several of them make one token
    (`observation_tokens`). R is 1, and WORLD is WORLD_CUR, unless the tokens of earlier frames are
    read, too (`world_history`).

    Who attends to whom: LANG to itself; OBS to LANG and OBS; WORLD to these and its own kind;
    FUT and ACT, two groups of learned queries, to all three and their own group. FUT and ACT do not
    see each other, so the future loss reaches the actions only through the shared weights, and
    `w_t` only through WORLD: B minus A is the auxiliary loss alone, C minus B the input alone.
    `block_world_to_action` closes the remaining path, after which the actions do not depend on
    `w_t` at all. Under `future_to_action` ACT attends to FUT, too: the learned queries, whose
    states come to predict the future, or in training these with the true future's embedding and
    noise added, for half of the samples. The loss on the world counts for both, so that one head
    holds both kinds of states to one meaning.

    What FUT predicts is a head each: the tokens of every slot, and what there is once a step (an
    embedding, its change, the change token of the last step) from the first slot's state.

    With `observation_dropout` the policy can act in the dark: at frames whose camera shows nothing
    OBS is a learned vector with the frame's state (as BERT's [MASK]; Devlin et al., 2019).

    The modules that all arms share are created first and in one order, so that arms trained with
    the same seed start from the same shared weights.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        frame, window, dim = config.frame, config.window, config.trunk.d_model
        observation, world = frame.observation, frame.world
        self.embedding_norm = Standardizer(*observation.axis, observation.embedding_dim)
        self.state_norm = Standardizer(frame.state_dim)
        self.action_norm = Standardizer(frame.action_dim)
        self.trunk = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                d_model=dim,
                nhead=config.trunk.n_heads,
                dim_feedforward=4 * dim,
                dropout=config.trunk.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            ),
            num_layers=config.trunk.n_layers,
            norm=nn.LayerNorm(dim),
            enable_nested_tensor=False,
        )
        self._redraw_layers()
        self._tokens_per_frame, token_cells = self._cells_of_tokens()
        self.embedding_in = nn.Linear(token_cells * observation.embedding_dim, dim)
        self.state_in = nn.Linear(frame.state_dim, dim)
        self.obs_position = _learned(window.context_frames, dim)
        self.act_queries = _learned(window.chunk_size, dim)
        self.action_head = build_action_head(config.action_head, dim, frame.action_dim)
        if self._tokens_per_frame > 1:
            self.view_position = _learned(observation.num_views, dim)
            self.cell_position = _learned(self._tokens_per_frame // observation.num_views, dim)
        if config.trunk.observation_dropout > 0:
            # Zeros draw nothing: all other weights begin as without it.
            self.dark_observation = nn.Parameter(torch.zeros(dim))
        if config.reads_language:
            self.instruction_norm = Standardizer(frame.instruction_dim)
            self.instruction_in = nn.Linear(frame.instruction_dim, dim)
            self.instruction_position = _learned(1, dim)
        if config.predicts_world:
            self.fut_queries = _learned(window.future_offset * world.num_world_slots, dim)
            self._add_target_heads(dim)
        if config.reads_world:
            self._add_world_input(dim)
            self.world_position = _learned(self._world_slots(), dim)
            has_norm = config.world_input.world_input_layernorm
            self.world_norm = nn.LayerNorm(dim) if has_norm else nn.Identity()
            if window.world_history:
                self.world_time_position = _learned(1 + window.world_history, dim)
        self.register_buffer("_blocked", self._attention_mask(), persistent=False)

    def _add_target_heads(self, dim: int) -> None:
        config, frame = self.config, self.config.frame
        if config.predicts("token"):
            self.world_head = nn.Linear(dim, frame.world.num_world_tokens)
        sizes = {name: frame.future_dim for name in config.target.vectors}
        if config.predicts("change_token"):
            sizes["change_token"] = frame.num_change_tokens
        self.target_heads = nn.ModuleDict({n: nn.Linear(dim, k) for n, k in sizes.items()})
        needed = {*config.target.vectors, config.future_input}
        if "embedding" in needed:
            self.future_norm = Standardizer(frame.future_dim)
        if "embedding_change" in needed:
            # A change over more frames is a larger one, so each step is standardised by itself.
            self.change_norm = Standardizer(config.window.future_offset, frame.future_dim)
        if config.target.future_to_action:
            self.future_in = nn.Linear(frame.future_dim, dim)

    def _add_world_input(self, dim: int) -> None:
        """Make what WORLD is read with: rows of an embedding, or a linear map of a vector."""
        frame, target = self.config.frame, self.config.oracle_target
        if target in VECTOR_TARGETS:
            self.world_in = nn.Linear(frame.future_dim, dim)
            return
        # Each slot has V rows of its own: what a code means may depend on where it stands.
        num_rows = frame.world.num_world_slots * frame.world.num_world_tokens
        if target == "change_token":
            num_rows = frame.num_change_tokens
        self.world_embedding = nn.Embedding(num_rows, dim)
        nn.init.normal_(self.world_embedding.weight, std=0.02)

    def _world_slots(self) -> int:
        """Return of how many tokens WORLD is, of one frame: what a step has once is one."""
        once = self.config.oracle_target not in (None, "token")
        return 1 if once else self.config.frame.world.num_world_slots

    def _redraw_layers(self) -> None:
        # nn.TransformerEncoder copies one layer n times; each layer gets a draw of its own.
        for parameter in self.trunk.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def _cells_of_tokens(self) -> tuple[int, int]:
        """Return how many tokens a frame is read as, and how many of its P vectors each holds."""
        observation = self.config.frame.observation
        num_tokens = {"cell": observation.num_vectors, "view": observation.num_views, "frame": 1}
        count = num_tokens[self.config.trunk.observation_tokens]
        return count, observation.num_vectors // count

    def _kinds(self) -> dict[str, int]:
        """Return how many tokens of each kind there are, in their order."""
        config = self.config
        frame, window = config.frame, config.window
        num_slots = frame.world.num_world_slots
        return {
            "lang": int(config.reads_language),
            "obs": window.context_frames * self._tokens_per_frame,
            "world": self._world_slots() * (1 + window.world_history) * config.reads_world,
            "fut": num_slots * window.future_offset * config.predicts_world,
            "act": window.chunk_size,
        }

    def _attention_mask(self) -> Bool[Tensor, "L L"]:
        """Return True where the row's token must not attend to the column's."""
        kinds = [kind for kind, count in self._kinds().items() for _ in range(count)]
        seen = {"lang", "obs"}
        blocked = self.config.block_world_to_action
        ahead = {"fut"} if self.config.target.future_to_action else set()
        visible = {
            "lang": {"lang"},
            "obs": seen,
            "world": seen | {"world"},
            "fut": seen | {"world", "fut"},
            "act": seen | ahead | ({"act"} if blocked else {"world", "act"}),
        }
        return torch.tensor([[column not in visible[row] for column in kinds] for row in kinds])

    def forward(
        self,
        embeddings: Float[Tensor, "B T *P D"],
        states: Float[Tensor, "B T S"],
        world_tokens: Int[Tensor, " B *RW"],
        instructions: Float[Tensor, "B L"] | None = None,
        is_dark: Bool[Tensor, "B T"] | None = None,
        future: Float[Tensor, "B K D2"] | None = None,
    ) -> PolicyOutput:
        """Predict an action chunk and the world ahead.

        Args:
            embeddings: frame embeddings as cached (not standardised), oldest first.
            states: robot states as cached, oldest first.
            world_tokens: `w_t`, the tokens of the newest frame, after those of the n frames of
                the history, oldest first; only an arm that reads them does.
            instructions: embedding of each sample's instruction, as cached; only for a policy that
                reads language, and then required.
            is_dark: marks the frames whose embeddings are not seen, whatever they hold; None where
                all are. Only for a policy that was built with `observation_dropout`.
            future: the true vectors of the K steps ahead that `PolicyConfig.future_input` names, as
                cached: in training where the actions attend to the future, and for an oracle that
                reads vectors, which needs them always.

        Raises:
            ValueError: a policy that reads language got no instructions, one that always sees got
                dark frames, or an oracle no future.
        """
        config = self.config
        batch = len(embeddings)
        tokens = [self._observation(embeddings, states, is_dark)]
        if config.reads_language:
            if instructions is None:
                raise ValueError("this policy reads language; give it instruction embeddings")
            lang = self.instruction_in(self.instruction_norm(instructions))
            tokens.insert(0, lang[:, None] + self.instruction_position)
        if config.reads_world:
            tokens.append(self._world_input(world_tokens, future))
        if config.predicts_world:
            tokens.append(self._future_input(batch, future))
        tokens.append(self.act_queries.expand(batch, -1, -1))
        states_out = self.trunk(torch.cat(tokens, dim=1), mask=self._blocked, is_causal=False)
        lang, _, world, future_states, action = states_out.split(
            list(self._kinds().values()), dim=1
        )
        hidden = TrunkHidden(
            lang=lang if config.reads_language else None,
            world=world[:, -self._world_slots() :] if config.reads_world else None,
            future=future_states if config.predicts_world else None,
        )
        return PolicyOutput(
            actions=self.action_head(action),
            action_states=action,
            world_logits=self._world_logits(future_states) if config.predicts("token") else None,
            hidden=hidden,
            futures=self._futures(future_states) if config.predicts_world else {},
        )

    def _observation(
        self,
        embeddings: Float[Tensor, "B T *P D"],
        states: Float[Tensor, "B T S"],
        is_dark: Bool[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B TP d"]:
        """Return OBS×T×P: each token of a frame with the frame's state."""
        num_tokens = self._tokens_per_frame
        vectors = self.embedding_norm(embeddings).reshape(
            len(embeddings), -1, self.embedding_in.in_features
        )
        obs = self.embedding_in(vectors).unflatten(1, (-1, num_tokens))
        if is_dark is not None:
            if self.config.trunk.observation_dropout == 0:
                raise ValueError("this policy was built without observation_dropout")
            obs = torch.where(is_dark[:, :, None, None], self.dark_observation, obs)
        obs = obs + self.state_in(self.state_norm(states))[:, :, None] + self.obs_position[:, None]
        if num_tokens > 1:
            obs = obs + (self.view_position[:, None] + self.cell_position).flatten(0, 1)
        return obs.flatten(1, 2)

    def _world_input(
        self, world_tokens: Int[Tensor, " B *RW"], future: Float[Tensor, "B K D2"] | None = None
    ) -> Float[Tensor, "B tokens d"]:
        knobs = self.config.world_input
        num_read = 1 + self.config.window.world_history
        read = self._world_content(world_tokens, future)
        content = knobs.world_input_scale * self.world_norm(read)
        if self.training and knobs.world_input_dropout > 0:
            # The stream is dropped whole, as a modality, and not rescaled: the policy has to act
            # without it, not on a louder copy of it.
            shape = (len(content), 1)
            kept = torch.rand(shape, device=content.device) >= knobs.world_input_dropout
            content = content * kept[..., None]
        if num_read == 1:
            return content + self.world_position
        return content + (self.world_time_position[:, None] + self.world_position).flatten(0, 1)

    def _world_content(
        self, world_tokens: Int[Tensor, " B *RW"], future: Float[Tensor, "B K D2"] | None
    ) -> Float[Tensor, "B tokens d"]:
        """Embed the tokens that are read; or, for an oracle of vectors, that of the last step."""
        target = self.config.oracle_target
        if target in VECTOR_TARGETS:
            if future is None:
                raise ValueError("this oracle reads the true future; give it the vectors ahead")
            content: Tensor = self.world_in(self.standardised(target, future))
            return content[:, -1:]
        world, num_slots = self.config.frame.world, self._world_slots()
        num_read = 1 + self.config.window.world_history
        tokens = world_tokens.reshape(-1, num_read, num_slots)
        first_rows = torch.arange(num_slots, device=world_tokens.device)
        embedded: Tensor = self.world_embedding(
            (tokens + world.num_world_tokens * first_rows).flatten(1)
        )
        return embedded

    def _future_input(
        self, batch: int, future: Float[Tensor, "B K D2"] | None
    ) -> Float[Tensor, "B KW d"]:
        """Return the learned queries, and where ACT attends to the true future, that in them."""
        queries = self.fut_queries.expand(batch, -1, -1)
        config = self.config
        if not config.target.future_to_action or future is None:
            return queries
        vectors = self.standardised("embedding", future)
        given = torch.ones((batch, 1, 1), device=vectors.device)
        if self.training and not config.oracle:
            vectors = vectors + config.target.future_noise * torch.randn_like(vectors)
            given = (torch.rand_like(given) < TRUE_FUTURE_SHARE).to(vectors.dtype)
        content = self.future_in(vectors) * given
        return queries + content.repeat_interleave(config.frame.world.num_world_slots, dim=1)

    def standardised(
        self, target: WorldTarget, vectors: Float[Tensor, "B K D2"]
    ) -> Float[Tensor, "B K D2"]:
        """Bring a target that is a vector into standard deviations of training frames."""
        norm = self.future_norm if target == "embedding" else self.change_norm
        standardised: Tensor = norm(vectors)
        return standardised

    def _futures(self, states: Float[Tensor, "B KW d"]) -> dict[str, Tensor]:
        """Predict what there is once a step, from the first slot's state."""
        first = states[:, :: self.config.frame.world.num_world_slots]
        return {
            name: head(first[:, -1] if name == "change_token" else first)
            for name, head in self.target_heads.items()
        }

    def _world_logits(self, future: Float[Tensor, "B KW d"]) -> Float[Tensor, "B K *W V"]:
        logits: Tensor = self.world_head(future)
        num_steps, world = self.config.window.future_offset, self.config.frame.world
        return logits.unflatten(1, (num_steps, *world.axis))

    def losses(
        self,
        output: PolicyOutput,
        batch: Batch,
        world_loss_weight: float,
        counts: ValidCounts | None = None,
    ) -> Losses:
        """Compare a prediction with its batch.

        Args:
            output: what was predicted.
            batch: what it was predicted from, and what is right.
            world_loss_weight: λ.
            counts: of the whole batch where this one is a part of it.
        """
        counts = counts or ValidCounts.of(batch)
        target = self.action_norm(batch.actions)
        action = self.action_head.loss(
            output.action_states, output.actions, target, batch.action_is_pad, counts.actions
        )
        zero = torch.zeros_like(action)
        if not self.config.predicts_world:
            none = zero.expand(self.config.frame.world.num_world_slots)
            return Losses(total=action, action=action, world=none, auxiliary=zero)
        world = [
            self._target_loss(target, output, batch, counts)
            for target in self.config.target.world_target
        ]
        weighted = world_loss_weight * torch.stack([terms.mean() for terms in world]).sum()
        return Losses(action + weighted, action, torch.cat(world), auxiliary=zero)

    def _target_loss(
        self, target: WorldTarget, output: PolicyOutput, batch: Batch, counts: ValidCounts
    ) -> Float[Tensor, " terms"]:
        if target == "token":
            assert output.world_logits is not None
            return world_loss(output.world_logits, batch.future_tokens, counts.tokens)
        if target == "change_token":
            assert batch.change_tokens is not None, "change tokens were not asked for"
            found = output.futures[target], batch.change_tokens
            return change_token_loss(*found, counts.changes)[None]
        true = self.standardised(target, batch.vectors(target))
        inside, kind = future_is_inside(batch), self.config.target.world_target_loss
        return vector_loss(output.futures[target], true, inside, counts.tokens, kind)[None]


def _learned(count: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, dim) * 0.02)


class AuxiliaryHead(nn.Module, ABC):
    """What the trainer asks of a further head.

    `L = L_action + λ·L_world + loss_weight·L_head`. A weight of 0 leaves the head out of the
    training altogether, and the policy ends bit-identical to one trained without it. To keep that
    so for every other weight as far as the random numbers go, a head draws nothing from torch's
    global generator when it computes its loss: what it needs depends on `global_step` alone, which
    also makes a resumed run repeat it.

    Attributes:
        name: what its loss is called in metrics.jsonl.
        loss_weight: factor on its loss.
    """

    name: str
    loss_weight: float

    @abstractmethod
    def loss(
        self, frames: Int[Tensor, " B"], hidden: TrunkHidden, global_step: int
    ) -> Float[Tensor, ""]:
        """Return the loss at these frames, from the trunk's states there."""

    @abstractmethod
    def validate(self, policy: WorldPolicy, tensors: FrameTensors) -> dict[str, float]:
        """Return metrics on held-out episodes, named `val_…`."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return what rebuilds the head beside its weights: plain values only."""

    def content(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"name": self.name, "record": self.record(), "weights": self.state_dict()}


@dataclass(frozen=True)
class HeadSite:
    """Where a head is built.

    Attributes:
        cache: that is trained on.
        tensors: its frames on the device.
        policy_config: of the trunk.
        stored: the record of the checkpoint that the run goes on from, or None.
    """

    cache: Cache
    tensors: FrameTensors
    policy_config: PolicyConfig
    stored: dict[str, Any] | None


HeadBuilder = Callable[[HeadSite], AuxiliaryHead]
