"""Flags of the trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from world_modality.arms import ARMS, CONTROLS, WORLD_INPUT_FLAGS, ControlName, ModelType
from world_modality.cache.mapped_rows import Place
from world_modality.policy.network import PolicyConfig
from world_modality.system.cli import config_dict
from world_modality.system.errors import InvalidInputError

_CONTROLS = ", ".join(f"{n} ({arm.model_type}: {arm.tokens})" for n, arm in CONTROLS.items())


@dataclass(frozen=True)
class TrainConfig:
    """Train one arm on a precomputed cache; images and datasets are never opened."""

    # What may differ between a run and its resumption without changing its result.
    may_change: ClassVar[frozenset[str]] = frozenset(
        {"resume", "overwrite", "device", "log_every", "cache_dir", "log_dir"}
        | {"save_every_steps", "keep_last", "embeddings_on", "cuda_graph"}
    )

    dataset_name: str
    """LeRobot repository id; the cache is read from `<cache_dir>/<dataset_name>`."""
    cache_dir: Path = Path("cache")
    """Where the stages keep their arrays."""
    log_dir: Path = Path("logs")
    """Receives config.json, metrics.jsonl, TensorBoard events and checkpoints."""
    split: str = "train"
    """Prefix of the cache's files."""
    model_type: ModelType = "A"
    """The arm. The three entry scripts fix it or narrow the choice."""

    use_language: bool = False
    """Condition the policy on the instruction embeddings of the cache."""
    context_frames: int = 1
    """T, frames that the policy sees, the newest included."""
    chunk_size: int = 8
    """H, actions that are predicted at once."""
    future_offset: int = 8
    """K, future world tokens that are predicted (not used by A)."""
    future_stride: int = 1
    """Frames between the K predicted tokens."""
    world_loss_weight: float = 0.2
    """λ of the future-token loss."""

    d_model: int = 256
    """Width of the trunk."""
    n_layers: int = 4
    """Depth of the trunk."""
    n_heads: int = 4
    """Attention heads."""
    dropout: float = 0.1
    """Dropout inside the trunk."""

    world_input_scale: float = 1.0
    """Factor on the world token's embedding (arm C)."""
    world_input_dropout: float = 0.0
    """Share of training samples whose world token is dropped whole (arm C)."""
    world_input_layernorm: bool = False
    """Layer-normalise the world token's embedding (arm C)."""
    token_control: Annotated[ControlName, tyro.conf.arg(help=f"Control arm: {_CONTROLS}.")] = "none"
    block_world_to_action: bool = False
    """Diagnostic: no attention from the action queries to the world token (arm C)."""

    num_epochs: int = 10
    """Passes over the training frames."""
    batch_size: int = 256
    """Windows a step, over all processes together."""
    learning_rate: float = 3e-4
    """Peak of the schedule."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine to zero, or constant."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    seed: int = 0
    """Of initial weights, data order and dropout; the data order is the same for every arm."""

    device: str = "auto"
    """auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …; each of several processes takes
    a GPU of its own."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU that has it, fp32 on a CPU."""
    compile: bool = False
    """Compile the step's forward and backward pass with torch's inductor, for about a minute at
    the start (a CPU needs a C++ compiler). Dropout draws other numbers than without."""
    cuda_graph: bool = True
    """On a GPU: record a step once and launch it whole from then on, with the same results, bit for
    bit. Not for the two-head training, nor in several processes."""
    num_workers: Literal[0] = 0
    """0 by design: the arrays live on the device and batches are gathered by index."""
    embeddings_on: Place = "auto"
    """auto: the device, unless they take more than half of its free memory; disk: mapped, and
    read ahead batch by batch. The batches are the same."""
    log_every: int = 50
    """Steps between the training lines of metrics.jsonl."""
    save_every_steps: int | None = None
    """Save within epochs too, at every so many optimiser steps; without it after each epoch."""
    keep_last: int | None = None
    """Keep only so many of the newest checkpoints; without it all are kept."""
    resume: bool = False
    """Go on from the last whole checkpoint in log_dir; without one, start."""
    overwrite: bool = False
    """Start anew although log_dir holds a run; its files are replaced."""

    def __post_init__(self) -> None:
        positive = ["num_epochs", "batch_size", "learning_rate", "max_grad_norm", "log_every"]
        for name in positive:
            if getattr(self, name) <= 0:
                raise InvalidInputError(f"--{name} must be above 0, not {getattr(self, name)}")
        for name in ("world_loss_weight", "weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise InvalidInputError(f"--{name} must not be negative: {getattr(self, name)}")
        for name in ("save_every_steps", "keep_last"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InvalidInputError(f"--{name} must be at least 1, not {number}")
        if self.resume and self.overwrite:
            raise InvalidInputError("--resume and --overwrite contradict each other")
        self._require_fitting_arm()

    def _require_fitting_arm(self) -> None:
        # C_no_world_input goes through C's own code path, flags included.
        takes_them = "C" in ARMS[self.model_type].choices
        for name, default in WORLD_INPUT_FLAGS.items():
            if getattr(self, name) != default and not takes_them:
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

    def policy_config(
        self,
        *,
        embedding_dim: int,
        state_dim: int,
        action_dim: int,
        num_world_tokens: int,
        instruction_dim: int,
    ) -> PolicyConfig:
        """Combine the flags with the dimensions that the cache gives."""
        return PolicyConfig(
            model_type=self.model_type,
            embedding_dim=embedding_dim,
            state_dim=state_dim,
            action_dim=action_dim,
            num_world_tokens=num_world_tokens,
            instruction_dim=instruction_dim,
            context_frames=self.context_frames,
            chunk_size=self.chunk_size,
            future_offset=self.future_offset,
            future_stride=self.future_stride,
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            dropout=self.dropout,
            world_input_scale=self.world_input_scale,
            world_input_dropout=self.world_input_dropout,
            world_input_layernorm=self.world_input_layernorm,
            block_world_to_action=self.block_world_to_action,
        )


def require_same_run(stored: dict[str, object], config: TrainConfig) -> None:
    """Check that a resumption asks for the run that the checkpoint belongs to.

    Args:
        stored: the resolved flags that the checkpoint keeps.
        config: of the resumption.

    Raises:
        InvalidInputError: names the flags that differ, with both values.
    """
    resumed = config_dict(config)
    stored = {"compile": False, "token_control": "none", **stored}
    names = (set(stored) | set(resumed)) - config.may_change
    differing = sorted(n for n in names if stored.get(n) != resumed.get(n))
    if differing:
        shown = ", ".join(f"--{n} {stored.get(n)} then, {resumed.get(n)} now" for n in differing)
        raise InvalidInputError(
            f"cannot resume {config.log_dir}: {shown}; give the same flags, another --log_dir, "
            "or --overwrite"
        )
