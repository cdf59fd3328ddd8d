"""What a policy and its training were configured with, as a checkpoint keeps it.

In memory a configuration is nested dataclasses. On a command line and in files (`config.json`, a
checkpoint) it is its flags, those of all groups side by side.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes

from world_modality.arms import (
    ARMS,
    CONTROLS,
    MODEL_TYPES,
    WORLD_INPUT_FLAGS,
    ControlName,
    ModelType,
)
from world_modality.cache.frame_shapes import FrameShape, WindowShape
from world_modality.system.errors import InvalidInputError, missing_key, require_at_least

ConfigT = TypeVar("ConfigT")
ObservationTokens = Literal["cell", "view", "frame"]

# What runs and checkpoints of older versions had before there was a flag for it.
BEFORE_THE_FLAG: Mapping[str, Any] = {
    "token_control": "none",
    "compile": False,
    "embeddings_on": "device",
    "cuda_graph": False,
    "num_views": 1,
    "grid_size": 1,
    "num_world_slots": 1,
    "action_head": "mse",
    "observation_tokens": "cell",
    "tracker": "none",
    "context_stride": 1,
    "world_history": 0,
    "world_history_stride": 1,
    "observation_dropout": 0.0,
}
_CONTROLS = ", ".join(f"{n} ({arm.model_type}: {arm.tokens})" for n, arm in CONTROLS.items())


@dataclass(frozen=True)
class TrunkConfig:
    """The transformer that all arms share."""

    d_model: int = 256
    """Width of the trunk."""
    n_layers: int = 4
    """Depth of the trunk."""
    n_heads: int = 4
    """Attention heads of the trunk."""
    dropout: float = 0.1
    """Dropout inside the trunk."""
    observation_tokens: ObservationTokens = "cell"
    """What of a frame becomes one token of the transformer: cell is each cell of each view; view is
    all cells of a view side by side; frame is all cells of all views, which is trained fastest."""
    observation_dropout: float = 0.0
    """Share of training samples in which the camera is dark at one to all frames of the context, as
    in an outage: their embeddings are replaced by a learned vector, the robot's state and the world
    tokens stay. Every arm has the same samples under one seed."""

    def __post_init__(self) -> None:
        require_at_least("n_layers", self.n_layers, 1)
        if self.n_heads < 1 or self.d_model % self.n_heads:
            raise InvalidInputError(
                f"--d_model {self.d_model} must be a multiple of --n_heads {self.n_heads}"
            )
        _require_share("dropout", self.dropout)
        _require_share("observation_dropout", self.observation_dropout)


@dataclass(frozen=True)
class WorldInputConfig:
    """How an arm reads the world token (arm C)."""

    world_input_scale: float = 1.0
    """Factor on the world token's embedding (arm C)."""
    world_input_dropout: float = 0.0
    """Share of training samples whose world tokens are all dropped (arm C)."""
    world_input_layernorm: bool = False
    """Layer-normalise the world token's embedding (arm C)."""

    def __post_init__(self) -> None:
        _require_share("world_input_dropout", self.world_input_dropout)


def _require_share(name: str, share: float) -> None:
    if not 0 <= share < 1:
        raise InvalidInputError(f"--{name} must lie in [0, 1), not {share}")


@dataclass(frozen=True)
class PolicyConfig:
    """All that determines the policy's shape; a checkpoint stores it whole.

    Attributes:
        model_type: the arm.
        frame: what the cache gives of every frame.
        window: how far a window reaches.
        trunk: the transformer.
        world_input: how the world token is read.
        block_world_to_action: no attention from the action queries to the world token.
        action_head: its name in `world_modality.policy.heads.ACTION_HEADS`.
    """

    model_type: ModelType
    frame: FrameShape
    window: WindowShape
    trunk: TrunkConfig
    world_input: WorldInputConfig
    block_world_to_action: bool = False
    action_head: str = "mse"

    @property
    def reads_language(self) -> bool:
        """Whether the instruction's embedding is an input."""
        return self.frame.instruction_dim > 0

    @property
    def world_axis(self) -> tuple[int, ...]:
        """The axes R and W of the tokens that are read; none for one token of one frame."""
        return (*self.window.history_axis, *self.frame.world.axis)

    @property
    def reads_world(self) -> bool:
        """Whether the current world token is an input."""
        return ARMS[self.model_type].reads_world

    @property
    def predicts_world(self) -> bool:
        """Whether future world tokens are predicted."""
        return ARMS[self.model_type].predicts_world


@dataclass(frozen=True)
class TrainConfig:
    """Train one arm on a precomputed cache; images and datasets are never opened."""

    # What may differ between a run and its resumption without changing its result.
    may_change: ClassVar[frozenset[str]] = frozenset(
        {"resume", "overwrite", "device", "log_every", "cache_dir", "log_dir"}
        | {"save_every_steps", "keep_last", "embeddings_on", "cuda_graph", "tracker"}
    )

    dataset_name: str
    """LeRobot repository id; the cache is read from `<cache_dir>/<dataset_name>`."""
    cache_dir: Path = Path("cache")
    """Folder of all caches."""
    log_dir: Path = Path("logs")
    """Folder that receives config.json, metrics.jsonl, TensorBoard events and checkpoints."""
    split: str = "train"
    """Prefix of the cache's files."""
    model_type: ModelType = "A"
    """Arm to train."""

    use_language: bool = False
    """Condition the policy on the instruction embeddings of the cache."""
    window: OmitArgPrefixes[WindowShape] = field(default_factory=WindowShape)
    world_loss_weight: float = 0.2
    """Weight λ of the loss on future world tokens."""

    trunk: OmitArgPrefixes[TrunkConfig] = field(default_factory=TrunkConfig)
    world_input: OmitArgPrefixes[WorldInputConfig] = field(default_factory=WorldInputConfig)
    token_control: Annotated[ControlName, tyro.conf.arg(help=f"Control arm: {_CONTROLS}.")] = "none"
    block_world_to_action: bool = False
    """Diagnostic: block attention from the action queries to the world token (arm C)."""

    num_epochs: int = 10
    """Passes over the training frames."""
    batch_size: int = 256
    """Windows of a step, over all processes together."""
    learning_rate: float = 3e-4
    """Learning rate at the peak of the schedule."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up: cosine lets it fall to zero, constant keeps
    it."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises linearly to its peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradients; longer ones are scaled down to it."""
    seed: int = 0
    """Seed of initial weights, data order and dropout; the data order is the same for every arm."""

    device: str = "auto"
    """Where to train: auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …; each of several
    processes takes a GPU of its own."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the matrix products; auto is bf16 autocast on a GPU that has it, and fp32
    elsewhere."""
    compile: bool = False
    """Compile the step's forward and backward pass with torch's inductor, which takes about a
    minute at the start (a CPU needs a C++ compiler). Dropout then draws other numbers."""
    cuda_graph: bool = True
    """Record a step as a CUDA graph once and replay it from then on, with the same results, bit for
    bit. Takes effect on a GPU only, and neither in the two-head training nor in several
    processes."""
    num_workers: Literal[0] = 0
    """Data-loading processes; always 0, since the arrays lie on the device and batches are gathered
    by index."""
    embeddings_on: Literal["auto", "device", "disk"] = "auto"
    """Where the embeddings lie during training: auto is the device, unless they take more than half
    of its free memory; disk maps the file, and batches are read ahead one by one. The batches are
    the same."""
    log_every: int = 50
    """Steps between the training lines of metrics.jsonl."""
    tracker: Literal["none", "wandb"] = "none"
    """Where losses and metrics go beside metrics.jsonl and TensorBoard: wandb (pip install wandb;
    WANDB_MODE=offline needs no account), or nowhere."""
    save_every_steps: int | None = None
    """Save a checkpoint every this many optimiser steps as well; without it one is saved after each
    epoch only."""
    keep_last: int | None = None
    """Keep only this many of the newest checkpoints; without it all are kept."""
    resume: bool = False
    """Continue from the last whole checkpoint in log_dir; where there is none, start."""
    overwrite: bool = False
    """Start again although log_dir holds a run; its files are replaced."""

    def __post_init__(self) -> None:
        positive = ["num_epochs", "batch_size", "learning_rate", "max_grad_norm", "log_every"]
        for name in positive:
            if getattr(self, name) <= 0:
                raise InvalidInputError(f"--{name} must be above 0, not {getattr(self, name)}")
        for name in ("world_loss_weight", "weight_decay", "warmup_steps"):
            require_at_least(name, getattr(self, name), 0)
        for name in ("save_every_steps", "keep_last"):
            require_at_least(name, getattr(self, name), 1)
        if self.resume and self.overwrite:
            raise InvalidInputError("--resume and --overwrite contradict each other")
        self._require_fitting_arm()

    def _require_fitting_arm(self) -> None:
        # C_no_world_input goes through C's own code path, flags included.
        takes_them = "C" in ARMS[self.model_type].choices
        flags = flags_of(self)
        for name, default in WORLD_INPUT_FLAGS.items():
            if flags[name] != default and not takes_them:
                raise InvalidInputError(
                    f"--{name} has no effect on model type {self.model_type}, which reads no world "
                    f"token; use it with {ARMS['C'].script}"
                )
        control = self.token_control
        if control != "none" and CONTROLS[control].model_type != self.model_type:
            raise InvalidInputError(
                f"--token_control {control} is a control of model type "
                f"{CONTROLS[control].model_type}, not of {self.model_type}"
            )

    def policy_config(self, frame: FrameShape) -> PolicyConfig:
        """Combine the flags with what the cache gives of a frame."""
        return PolicyConfig(
            model_type=self.model_type,
            frame=frame,
            window=self.window,
            trunk=self.trunk,
            world_input=self.world_input,
            block_world_to_action=self.block_world_to_action,
        )


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def flags_of(config: Any) -> dict[str, Any]:
    """Return a configuration's flags by name, those of its groups side by side; paths as text."""
    flags: dict[str, Any] = {}
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            flags |= flags_of(value)
        else:
            flags[one.name] = str(value) if isinstance(value, Path) else value
    return flags


def flag_names(config_type: type[Any]) -> list[str]:
    """Return the names of all flags of a kind of configuration."""
    types = get_type_hints(config_type)
    names: list[str] = []
    for one in dataclasses.fields(config_type):
        kind = types[one.name]
        names += flag_names(kind) if _is_group(kind) else [one.name]
    return names


def from_flags(config_type: type[ConfigT], flags: Mapping[str, Any]) -> ConfigT:
    """Build a configuration of its flags by name; those left out have their defaults.

    Raises:
        TypeError: it has no such flag, or one without a default is missing.
    """
    left = dict(flags)
    config = _taken_from(left, config_type)
    if left:
        raise TypeError(f"{config_type.__name__} has no flag {', '.join(left)}")
    return config


def _taken_from(flags: dict[str, Any], config_type: type[ConfigT]) -> ConfigT:
    """Build a configuration, taking its flags out of the dict."""
    types = get_type_hints(config_type)
    values: dict[str, Any] = {}
    for one in dataclasses.fields(config_type):  # type: ignore[arg-type]
        kind = types[one.name]
        if _is_group(kind):
            values[one.name] = _taken_from(flags, kind)
        elif one.name in flags:
            value = flags.pop(one.name)
            values[one.name] = Path(value) if kind is Path else value
    return config_type(**values)


def with_older_defaults(flags: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Add what runs of older versions lack of these flags: what there was before the flag."""
    lacking = {name for name in BEFORE_THE_FLAG if name in names and name not in flags}
    return {**flags, **{name: BEFORE_THE_FLAG[name] for name in sorted(lacking)}}


def stored_config(config_type: type[ConfigT], flags: Mapping[str, Any]) -> ConfigT:
    """Rebuild a configuration that a checkpoint of this or an older version stores.

    Raises:
        InvalidInputError: a flag is missing or unknown, or has an impossible value.
        MissingKeyError: this version has no such arm or control.
    """
    names = flag_names(config_type)
    flags = with_older_defaults(flags, names)
    if differing := set(flags) ^ set(names):
        raise InvalidInputError(
            f"the checkpoint's {config_type.__name__} lacks or adds {', '.join(sorted(differing))} "
            "compared with this version; use the version that wrote it, or train again"
        )
    for name, kind, known in (
        ("model_type", "arm", MODEL_TYPES),
        ("token_control", "control", ("none", *CONTROLS)),
    ):
        if name in flags and flags[name] not in known:
            raise missing_key(kind, str(flags[name]), known, "this version")
    return from_flags(config_type, flags)


def stored_train_config(flags: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, Any]]:
    """Split a training's flags into those that every training has and those that its stage adds.

    Raises:
        As `stored_config`.
    """
    names = flag_names(TrainConfig)
    own = {name: value for name, value in flags.items() if name in names}
    return stored_config(TrainConfig, own), {k: v for k, v in flags.items() if k not in names}
