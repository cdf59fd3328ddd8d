"""Several seeds of one arm, trained side by side in one process on one copy of the data.

Each seed gets the run folder that a training of its own would write, `<log_dir>/seed_<n>`, with
that training's results. On a GPU the steps of the seeds overlap, each in a stream of its own: a
small policy's kernels leave most of a GPU idle.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import torch
from tqdm import tqdm

from world_modality.policy.config import TrainConfig
from world_modality.system.device import resolve_device
from world_modality.system.recorded_calls import RandomState
from world_modality.system.stop_signals import StopSignals
from world_modality.training.run import TrainingRun, TrainingStoppedError
from world_modality.training.single import TrainResult, existing_checkpoint, load_frames, open_run


class SeedContext:
    """Where one of several trainings in a process computes: with its own random numbers.

    On a GPU it has its own stream, too. Made when all that it reads is on the device.

    Args:
        device: of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self._random = RandomState(device)
        self._stream = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self._stream = torch.cuda.Stream(device)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Compute in this context inside the block."""
        with self._random.active(), torch.cuda.stream(self._stream):
            yield


@dataclass(frozen=True)
class Member:
    """One seed's run, and where it computes."""

    run: TrainingRun
    context: SeedContext


def train_seeds(configs: list[TrainConfig]) -> list[TrainResult]:
    """Train runs that differ in their seed, each with the result that it would have on its own."""
    tensors = load_frames(configs[0], resolve_device(configs[0].device))
    stop = StopSignals()
    members = []
    for own in configs:
        training = open_run(own, tensors, existing_checkpoint(own), stop=stop)
        members.append(Member(training, SeedContext(tensors.device)))
    members[0].run.print_header()
    seeds = ", ".join(str(own.seed) for own in configs)
    print(f"seeds {seeds} side by side: each makes one step in its turn")
    SideBySide(members, stop).to_the_end()
    results = [TrainResult(m.run.checkpoint, m.run.metrics) for m in members]
    for result in results:
        print(f"checkpoint: {result.checkpoint}")
    return results


class SideBySide:
    """Takes the runs of several seeds to their end together.

    Args:
        members: one a seed; those that are behind, as after a kill, catch up first, one by one.
        stop: the signals that all of them obey.
    """

    def __init__(self, members: list[Member], stop: StopSignals) -> None:
        self._members = [member for member in members if not member.run.is_finished]
        self._stop = stop

    def to_the_end(self) -> None:
        """Train.

        Raises:
            InvalidInputError: a loss is not finite, or a last checkpoint could not be written.
            KeyboardInterrupt: SIGTERM or SIGINT came; what was done is saved for each seed.
        """
        if not self._members:
            return
        with self._stop, ExitStack() as opened:
            for member in self._members:
                opened.enter_context(member.run.opened())
            farthest = max(member.run.trainer.global_step for member in self._members)
            self._each(lambda run: run.go_to(farthest))
            first = self._members[0].run
            while not first.is_finished:
                self._steps()
                self._each(TrainingRun.end_epoch)
                if self._stop.requested and not first.is_finished:
                    self._each(TrainingRun.leave)
            self._each(lambda run: run.saver.finish())

    def _steps(self) -> None:
        """Make the steps that the epoch still has; a signal is obeyed after each."""
        first = self._members[0].run
        position = first.position
        bar = tqdm(
            range(position.epoch_step, first.trainer.steps_per_epoch),
            initial=position.epoch_step,
            total=first.trainer.steps_per_epoch,
            desc=f"{len(self._members)} seeds, epoch {position.epoch}",
        )
        with ExitStack() as begun:
            epochs = [
                begun.enter_context(
                    closing(member.run.trainer.epoch(position.epoch, position.epoch_step))
                )
                for member in self._members
            ]
            for _ in bar:
                losses = []
                for member, epoch in zip(self._members, epochs, strict=True):
                    with member.context.entered():
                        losses.append(member.run.note(next(epoch)))
                if losses[0] is not None:
                    bar.set_postfix(loss=" ".join(f"{loss:.4f}" for loss in losses))
                # Asked once, so that a signal that comes meanwhile stops all at the same step.
                is_stopping = self._stop.requested is not None
                if first.is_save_due or is_stopping:
                    self._each(TrainingRun.save)
                if is_stopping:
                    bar.close()
                    self._each(TrainingRun.leave)

    def _each(self, act: Callable[[TrainingRun], object]) -> None:
        """Let each run act in its context; one that stops lets the others act, too."""
        stopped: TrainingStoppedError | None = None
        for member in self._members:
            try:
                with member.context.entered():
                    act(member.run)
            except TrainingStoppedError as error:
                stopped = error
        if stopped is not None:
            raise stopped
