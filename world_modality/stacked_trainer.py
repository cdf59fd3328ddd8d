"""Trainers of several seeds whose steps are computed as one, with weights stacked over the seeds.

A small policy keeps a GPU waiting for the launch of its kernels. Stacked, S policies share them:
the forward and the backward pass under `torch.vmap`, and AdamW, which works element by element, on
all weights at once. Each seed's random draws stay launches of its own.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from world_modality.frame_tensors import Batch
from world_modality.losses import Losses, policy_losses
from world_modality.random_draws import Draw, DrawRecorder, RandomState, StackedPass
from world_modality.trainer import StepRecord, Trainer, adamw, autocast


class StackedTrainer:
    """Makes the steps of S trainers that differ in their seed alone.

    The trainers' weights and optimiser states become views of the stacked ones: what each holds is
    always its own present state, to validate and to save.

    Args:
        trainers: at the same step, without a further head.
        randoms: each trainer's state of torch's generators.
    """

    def __init__(self, trainers: list[Trainer], randoms: list[RandomState]) -> None:
        self._trainers = trainers
        self._randoms = randoms
        # Its modules compute for all, with the weights they are given.
        self._first = trainers[0]
        num_groups = len(self._first.optimizer.param_groups)
        self._blocks = [ParameterBlock(trainers, index) for index in range(num_groups)]
        self._optimizer = adamw([block.group for block in self._blocks], self._first.config)
        for block in self._blocks:
            self._optimizer.state[block.values] = block.state
        self._draws: dict[int, list[Draw]] = {}

    def epoch(self, epoch: int, num_done: int) -> Iterator[list[StepRecord]]:
        """Train what is left of an epoch; yields each step's records, one a seed.

        Args:
            epoch: counted from 0.
            num_done: steps of it that have been made already.
        """
        for trainer in self._trainers:
            trainer.policy.train()
        for frames in zip(*(t.batches(epoch, num_done) for t in self._trainers), strict=True):
            yield self._step(list(frames))

    def _step(self, frames: list[Int[Tensor, " B"]]) -> list[StepRecord]:
        first = self._first
        batch = self._gather(frames)
        learning_rate = first.learning_rate(first.global_step)
        for optimizer in (self._optimizer, *(t.optimizer for t in self._trainers)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        weights = {k: v for block in self._blocks for k, v in block.named().items()}
        losses = torch.vmap(self._losses)(weights, batch, self._drawn(batch))
        self._optimizer.zero_grad(set_to_none=True)
        losses[0].sum().backward()
        self._clip()
        self._optimizer.step()
        records = []
        for trainer, own in zip(self._trainers, zip(*losses, strict=True), strict=True):
            trainer.global_step += 1
            records.append(StepRecord(trainer.global_step, Losses(*own).detach(), learning_rate))
        return records

    def _gather(self, frames: list[Int[Tensor, " B"]]) -> dict[str, Tensor]:
        """Return the seeds' batches, each field stacked."""
        first, num_seeds = self._first, len(self._trainers)
        if first.control.depends_on_seed:
            batches = [
                _fields(trainer.control.gather(own, first.window_shape, first.global_step))
                for trainer, own in zip(self._trainers, frames, strict=True)
            ]
            return {name: torch.stack([own[name] for own in batches]) for name in batches[0]}
        whole = first.control.gather(torch.cat(frames), first.window_shape, first.global_step)
        return {k: v.unflatten(0, (num_seeds, -1)) for k, v in _fields(whole).items()}

    def _drawn(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Make the draws of a pass for each seed, as its own training would make them."""
        size = batch["actions"].shape[1]
        first = self._first
        if size not in self._draws:
            own = _batch({name: field[0] for name, field in batch.items()})
            recorder = DrawRecorder()
            with torch.no_grad(), autocast(first.config.precision, first.tensors.device), recorder:
                first.policy(own.embeddings, own.states, own.world_tokens, own.instructions)
            self._draws[size] = recorder.draws
        drawn = []
        for random in self._randoms:
            with random.lent(), autocast(first.config.precision, first.tensors.device):
                drawn.append([draw() for draw in self._draws[size]])
        return [torch.stack(of_seeds) for of_seeds in zip(*drawn, strict=True)]

    def _losses(
        self, weights: dict[str, Tensor], fields: dict[str, Tensor], drawn: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return one seed's losses, in the order of `Losses`."""
        policy, config = self._first.policy, self._first.config
        batch = _batch(fields)
        inputs = (batch.embeddings, batch.states, batch.world_tokens, batch.instructions)
        with autocast(config.precision, self._first.tensors.device), StackedPass(drawn):
            output = functional_call(policy, weights, inputs)
        losses = policy_losses(policy, output, batch, config.world_loss_weight)
        return tuple(getattr(losses, field.name) for field in dataclasses.fields(Losses))

    def _clip(self) -> None:
        """Scale each seed's gradient down to the wanted norm, as `clip_grad_norm_` does."""
        gradients = [block.gradient() for block in self._blocks]
        parts = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients])
        norms = torch.linalg.vector_norm(parts, dim=0)
        factors = (self._first.config.max_grad_norm / (norms + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factors[:, None])


class ParameterBlock:
    """One group of the optimiser, P weights of S seeds in one tensor, with AdamW's state of it.

    The trainers' weights and their optimisers' states become views.

    Args:
        trainers: their states agree in the number of steps.
        index: of the group.
    """

    def __init__(self, trainers: list[Trainer], index: int) -> None:
        groups = [trainer.optimizer.param_groups[index] for trainer in trainers]
        names = {id(p): name for name, p in trainers[0].policy.named_parameters()}
        self._names = [names[id(p)] for p in groups[0]["params"]]
        self._shapes = [p.shape for p in groups[0]["params"]]
        self.values = _stacked([group["params"] for group in groups]).requires_grad_()
        states = [
            [trainer.optimizer.state[p] for p in group["params"]]
            for trainer, group in zip(trainers, groups, strict=True)
        ]
        self.state = self._stacked_state(states, fused=bool(groups[0]["fused"]))
        self.group = {"params": [self.values], "weight_decay": groups[0]["weight_decay"]}
        self._lend(groups, states)

    def named(self) -> dict[str, Float[Tensor, "S ..."]]:
        """Return the weights by their names in the policy; gradients flow back into `values`."""
        return dict(zip(self._names, self._pieces(self.values), strict=True))

    def gradient(self) -> Float[Tensor, "S P"]:
        """Return the gradient of the last backward pass."""
        assert self.values.grad is not None
        return self.values.grad

    def _pieces(self, values: Float[Tensor, "S P"]) -> list[Float[Tensor, "S ..."]]:
        pieces = values.split([shape.numel() for shape in self._shapes], dim=1)
        return [p.unflatten(1, s) for p, s in zip(pieces, self._shapes, strict=True)]

    def _stacked_state(
        self, states: list[list[dict[str, Tensor]]], *, fused: bool
    ) -> dict[str, Tensor]:
        if not states[0][0]:
            # AdamW makes its state at its first step; made here, it can be viewed from now on.
            step = torch.zeros((), device=self.values.device if fused else None)
            moments = {n: torch.zeros_like(self.values) for n in ("exp_avg", "exp_avg_sq")}
            return {"step": step} | {n: m.detach() for n, m in moments.items()}
        stacked = {
            name: _stacked([[state[name] for state in own] for own in states])
            for name in ("exp_avg", "exp_avg_sq")
        }
        return {"step": states[0][0]["step"].clone(), **stacked}

    def _lend(self, groups: list[dict[str, Any]], states: list[list[dict[str, Tensor]]]) -> None:
        pieces = self._pieces(self.values.detach())
        moments = {n: self._pieces(self.state[n]) for n in ("exp_avg", "exp_avg_sq")}
        for seed, (group, own) in enumerate(zip(groups, states, strict=True)):
            for place, (parameter, state) in enumerate(zip(group["params"], own, strict=True)):
                parameter.data = pieces[place][seed]
                parameter.grad = None
                state["step"] = self.state["step"]
                state.update({name: of[place][seed] for name, of in moments.items()})


def _stacked(rows: list[list[Tensor]]) -> Float[Tensor, "S P"]:
    return torch.stack([torch.cat([t.detach().flatten() for t in row]) for row in rows])


def _fields(batch: Batch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in values.items() if value is not None}


def _batch(fields: dict[str, Tensor]) -> Batch:
    others = {name: field for name, field in fields.items() if name != "instructions"}
    return Batch(**others, instructions=fields.get("instructions"))
