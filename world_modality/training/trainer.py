"""The optimisation loop: the same for every arm, and without any file in it."""

import math
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from world_modality.cache.frame_tensors import Batch, FrameTensors, mean_and_std
from world_modality.policy.config import TrainConfig
from world_modality.policy.heads import Losses, ValidCounts, loss_names
from world_modality.policy.network import AuxiliaryHead, WorldPolicy
from world_modality.system.errors import InvalidInputError
from world_modality.system.process_group import ProcessGroup
from world_modality.system.recorded_calls import RecordedCalls, Tensors
from world_modality.tokens.control_tokens import TokenControl
from world_modality.training.observation_dropout import ObservationDropout

_CXX_COMPILERS = ("g++", "clang++")


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step; losses stay on the device until somebody reads them."""

    global_step: int
    losses: Losses
    learning_rate: float


class Trainer:
    """Steps through epochs of shuffled windows.

    Args:
        policy: on the device of `tensors`.
        tensors: the recorded frames.
        frames: training frames t; each is visited once an epoch.
        config: optimiser, schedule and seed.
        head: a further head on the trunk, on the same device; with a loss weight of 0 it stays as
            it is.
        group: the processes that share each batch; None for this one alone.
        own_tokens: see `TokenControl`.
        labelled: those of the training frames whose actions are learned from; None for all.
    """

    def __init__(
        self,
        policy: WorldPolicy,
        tensors: FrameTensors,
        frames: Int[np.ndarray, " M"],
        config: TrainConfig,
        head: AuxiliaryHead | None = None,
        group: ProcessGroup | None = None,
        own_tokens: Int[np.ndarray, " N *W"] | None = None,
        labelled: Int[np.ndarray, " M2"] | None = None,
    ) -> None:
        if len(frames) == 0:
            raise InvalidInputError("the training split has no frames")
        self.policy = policy
        self.head = head
        self.group = group or ProcessGroup(tensors.device)
        self.tensors = tensors
        self.config = config
        self.global_step = 0
        self._frames = torch.from_numpy(frames).to(tensors.device)
        self.window_shape = policy.config.window
        self.control = TokenControl(
            config.token_control,
            tensors,
            frames,
            config.seed,
            own_tokens=own_tokens,
            oracle_target=policy.config.oracle_target,
        )
        self.observation_dropout = ObservationDropout(
            config.trunk.observation_dropout, self.window_shape.context_frames, config.seed
        )
        self._has_labels = None
        if labelled is not None:
            self._has_labels = torch.zeros(tensors.episodes.num_frames, dtype=torch.bool)
            self._has_labels[torch.from_numpy(labelled)] = True
            self._has_labels = self._has_labels.to(tensors.device)
        modules = [policy] if head is None else [policy, head]
        groups = [group for m in modules for group in _parameter_groups(m, config.weight_decay)]
        self.optimizer = adamw(groups, config)
        # The policy itself stays as it is: validation runs it in another mode and other shapes.
        self._forward = _compiled(policy, tensors.device) if config.compile else policy
        self._recorded = self._recorder()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the training frames."""
        return math.ceil(len(self._frames) / self.config.batch_size)

    def epoch(self, epoch: int, num_done: int = 0) -> Generator[StepRecord]:
        """Train one epoch. The order depends on seed and epoch alone, whatever the arm.

        Args:
            epoch: counted from 0.
            num_done: steps of it that have been made already.
        """
        self.policy.train()
        if self.head is not None:
            self.head.train()
        batches = self.batches(epoch, num_done)
        for chosen in self.control.ahead(batches, self.window_shape):
            yield self.step(chosen)

    def batches(self, epoch: int, num_done: int = 0) -> Sequence[Int[Tensor, " B"]]:
        """Return the frames of the epoch's steps, without the first `num_done`."""
        rng = np.random.default_rng([self.config.seed, epoch])
        order = torch.from_numpy(rng.permutation(len(self._frames))).to(self.tensors.device)
        return self._frames[order].split(self.config.batch_size)[num_done:]

    def step(self, frames: Int[Tensor, " B"]) -> StepRecord:
        """Make one optimiser step on the windows around these frames."""
        part = self.group.part(len(frames))
        batch = self.control.gather(frames, self.window_shape, self.global_step, part)
        batch = self.observation_dropout.applied(batch, len(frames), self.global_step, part)
        if self._has_labels is not None:
            # An action without a label counts as little as one past the episode's end.
            unlabelled = ~self._has_labels[frames[part].to(self.tensors.device), None]
            batch = replace(batch, action_is_pad=batch.action_is_pad | unlabelled)
        learning_rate = self.learning_rate(self.global_step)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # a recorded step reads this very tensor
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate
        if self._recorded is None:
            terms = self._update(frames, batch)
        else:
            terms = self._recorded(batch.tensors())
        self.global_step += 1
        return StepRecord(self.global_step, Losses.of_stacked(terms), learning_rate)

    def _recorder(self) -> RecordedCalls | None:
        """Return the step as recorded calls where it can be recorded.

        Not with a head, whose texts differ in length from step to step, nor with several
        processes, which talk to each other on the CPU.
        """
        device = self.tensors.device
        can_record = device.type == "cuda" and self.head is None and self.group.is_alone
        if not can_record or not self.config.cuda_graph:
            return None

        def update(batch: Tensors) -> Tensor:
            return self._update(None, Batch(**batch))

        return RecordedCalls(update, device)

    def _update(self, frames: Int[Tensor, " B"] | None, batch: Batch) -> Float[Tensor, " terms"]:
        """Make one optimiser step on a batch; return its stacked losses. A head needs `frames`."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._backward(frames, batch)
        # Each module by its own norm, so that a head's gradient does not scale the policy's.
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        if self.head is not None:
            nn.utils.clip_grad_norm_(self.head.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return terms

    def _backward(self, frames: Int[Tensor, " B"] | None, batch: Batch) -> Float[Tensor, " terms"]:
        """Set the gradients of the whole batch, of which `batch` is this process's part."""
        counts = self._whole_counts(batch)
        if len(batch.actions) == 0:
            names = loss_names(
                self.policy.config.frame.world.num_world_slots, self.config.target.world_target
            )
            return self._summed(torch.zeros(1 + len(names), device=self.tensors.device))
        given = self.policy.config.future_input
        future = None if given is None else batch.vectors(given)
        with autocast(self.config.precision, self.tensors.device):
            output = self._forward(
                batch.embeddings,
                batch.states,
                batch.world_tokens,
                batch.instructions,
                batch.is_dark,
                future,
            )
        losses = self.policy.losses(output, batch, self.config.world_loss_weight, counts)
        if self.head is not None and self.head.loss_weight > 0:
            assert frames is not None
            with autocast(self.config.precision, self.tensors.device):
                auxiliary = self.head.loss(frames, output.hidden, self.global_step)
            losses = losses.with_auxiliary(auxiliary, self.head.loss_weight)
        losses.total.backward()
        return self._summed(losses.stacked())

    def _whole_counts(self, batch: Batch) -> ValidCounts:
        own = ValidCounts.of(batch)
        if self.group.is_alone:
            return own
        counts = torch.stack([own.actions, own.tokens, own.changes])
        return ValidCounts(*self.group.sum(counts))

    def _summed(self, terms: Float[Tensor, " terms"]) -> Float[Tensor, " terms"]:
        """Sum gradients and stacked losses over the processes.

        Not through DistributedDataParallel: the losses travel in the same message, and a process
        without rows needs no pass of its own.
        """
        if self.group.is_alone:
            return terms
        parameters = list(self.policy.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.group.sum_in_place([*gradients, terms])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return terms

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then cosine to zero (Loshchilov and Hutter, 2017) or constant."""
        peak = self.config.learning_rate
        total = self.config.num_epochs * self.steps_per_epoch
        warmup = min(self.config.warmup_steps, total // 2)
        if step < warmup:
            return peak * (step + 1) / warmup
        if self.config.lr_schedule == "constant":
            return peak
        done = (step - warmup) / max(1, total - warmup)
        return peak * 0.5 * (1 + math.cos(math.pi * done))

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the weights, as tensors and numbers."""
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])
        state = {"optimizer": optimizer, "torch_rng": torch.get_rng_state()}
        if self.tensors.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.tensors.device)
        return state

    def restore(self, state: dict[str, Any], global_step: int) -> None:
        """Go back to a state that `state` returned."""
        self.global_step = global_step
        saved = state["optimizer"]
        groups = [
            # The device that trains now may not be the one that trained then.
            {**old, **{name: new[name] for name in ("lr", "fused", "capturable")}}
            for old, new in zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        self._recorded = self._recorder()  # the optimiser's tensors are others now
        torch.set_rng_state(state["torch_rng"].cpu())
        if "cuda_rng" in state and self.tensors.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.tensors.device)


def fit_standardizers(
    policy: WorldPolicy,
    tensors: FrameTensors,
    frames: Int[np.ndarray, " M"],
    labelled: Int[np.ndarray, " M2"] | None = None,
) -> None:
    """Set the policy's input and output statistics from these (training) frames.

    Args:
        policy: whose statistics are set.
        tensors: the recorded frames.
        frames: training frames.
        labelled: those of them whose actions are known; None for all.
    """
    fitted = [
        (policy.embedding_norm, tensors.embeddings, frames),
        (policy.state_norm, tensors.states, frames),
        (policy.action_norm, tensors.actions, frames if labelled is None else labelled),
    ]
    if tensors.instructions is not None:
        fitted.append((policy.instruction_norm, tensors.instructions, frames))
    if tensors.future_rows is not None and hasattr(policy, "future_norm"):
        fitted.append((policy.future_norm, tensors.future_rows.embeddings, frames))
    for standardizer, values, chosen in fitted:
        mean, std = mean_and_std(values, chosen)
        standardizer.mean.copy_(mean)
        standardizer.std.copy_(std)
    if tensors.future_rows is not None and hasattr(policy, "change_norm"):
        _fit_changes(policy, tensors, frames)


def _fit_changes(policy: WorldPolicy, tensors: FrameTensors, frames: Int[np.ndarray, " M"]) -> None:
    """Set the statistics of each step's change, from the frames whose step lies in the episode."""
    assert tensors.future_rows is not None
    episodes, window = tensors.episodes, policy.config.window
    ends = episodes.ends[episodes.of_frame[frames]]
    for step in range(window.future_offset):
        num_steps = (1 + step) * window.future_stride
        inside = frames[frames + num_steps < ends]
        if len(inside) == 0:
            raise InvalidInputError(
                f"no training episode is longer than the {num_steps} frames of --future_offset "
                f"{window.future_offset} x --future_stride {window.future_stride}; lower them"
            )
        mean, std = mean_and_std(tensors.future_rows.changes_over(num_steps), inside)
        policy.change_norm.mean[step] = mean
        policy.change_norm.std[step] = std


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which the forward pass computes."""
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
    wanted = precision == "bf16" or (precision == "auto" and on_gpu)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def adamw(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.AdamW:
    """Return the optimiser of these groups of parameters; on a GPU its steps can be recorded."""
    devices = {p.device for group in groups for p in group["params"]}
    if any(device.type != "cuda" for device in devices):
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    rate = torch.tensor(config.learning_rate, device=devices.pop())
    return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=True)


def _compiled(policy: nn.Module, device: torch.device) -> nn.Module:
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


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    # Decay belongs on matrices; biases, norms and learned tokens keep their scale.
    tokens = ("queries", "position")
    decayed = [p for n, p in module.named_parameters() if p.dim() > 1 and not n.endswith(tokens)]
    chosen = {id(p) for p in decayed}
    kept = [p for p in module.parameters() if id(p) not in chosen]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
