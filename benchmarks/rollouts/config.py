"""The flags that closed-loop evaluation has in every suite."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.rollouts.outage import Outage
from world_modality.acting.action_chunks import ChunkExecution
from world_modality.acting.world_input import DarkInput
from world_modality.system.errors import InvalidInputError, require_at_least
from world_modality.tokens.corruption import (
    CLOSED_LOOP,
    Corruption,
    read_closed_loop_corruption,
    spellings,
)

_CORRUPT_WORLD = "World token that arm C reads: " + "; ".join(
    f"{spelled}, {meaning}" for spelled, meaning in spellings(CLOSED_LOOP).items()
)


@dataclass(frozen=True)
class RolloutConfig:
    """Roll policies out in the simulator and report their success rates."""

    checkpoint: tuple[Path, ...]
    """Checkpoints to roll out; several share initial states and seeds and are compared in pairs."""
    out_dir: Path | None = None
    """Folder that receives results.jsonl, summary.json, summary.md and videos. Default: beside the
    first checkpoint."""
    n_trials: int = 50
    """Episodes to roll out of each task."""
    env_num: int = 2 * len(os.sched_getaffinity(0))
    """Environments that run at once, each in a process of its own. Results do not depend on it.
    Default: two per core, since each waits for the policy part of the time."""
    max_steps: int | None = None
    """Steps after which an episode has failed. Default: the suite's standard limit."""
    camera_key: tuple[str, ...] = ()
    """Cameras that the policy sees, as many as it was trained on and in that order. Default: those
    that it was trained on. No other camera is rendered."""
    state_key: str | None = None
    """Robot state that the policy sees. Default: the one that it was trained on."""
    seed: int = 0
    """Seed of the initial states, where the suite draws them, and of the policy's random draws."""
    device: str = "auto"
    """Where encoder and policy run: auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …"""
    policy_batch_size: int | None = None
    """Observations that go through encoder and policy at a time, filled up to this number; results
    depend on it in the last digits only, but never on env_num. Default: 1 on a CPU, 16 on a GPU."""

    n_action_steps: int | None = None
    """Actions of each predicted chunk that are executed. Default: the whole chunk."""
    temporal_ensemble_coeff: float | None = None
    """Predict a chunk at every step and execute the mean of all actions that the chunks so far
    predict for that step, weighted by exp(-m i), i = 0 the oldest (ACT; Zhao et al., 2023); ACT's m
    is 0.01. Needs --n_action_steps 1."""
    corrupt_world: Annotated[str, tyro.conf.arg(help=_CORRUPT_WORLD)] = "none"
    corrupt_slot: int | None = None
    """Replace only this world token of a frame, counted from 0. Default: all of them."""
    corrupt_frames: tuple[int, int] | None = None
    """Make only the tokens of these frames wrong, the first and the last, counted from 0 at the
    episode's start, wherever the policy reads them: now, or later in its history. Default: all."""
    outage_length: int = 0
    """Frames for which the policy's cameras are dark in each episode, as in an outage; the robot's
    state is still seen. Recordings stay whole."""
    outage_start: tuple[int, int] | None = None
    """First and last frame that an outage may begin in, both from 1. It is drawn for each episode,
    the same for every policy and every length."""
    world_input: DarkInput = "own"
    """World token that arm C reads of a dark frame: own is that of a black image; own_prediction is
    the one that it predicted for the frame, in the dark from its own predictions; hold is the last
    one of a frame that it saw; true_token is that of what the camera would show (an oracle)."""
    wrong_instruction: bool = False
    """Control: give the policy the instruction of another selected task."""
    text_model_name: str | None = None
    """Name or folder of the text model, if it has moved since training."""
    vision_model_name: str | None = None
    """Name or folder of the vision model, if it has moved since training."""
    trust_remote_code: bool = False
    """Run code that the vision model's repository contains."""

    check_parity: bool = True
    """Replay recorded demonstrations first and compare what is observed with the recording;
    --no_check_parity skips it."""
    dataset_root: Path | None = None
    """The recording that the policy was trained on, for the parity check. Default: where
    LeRobot looks for a dataset of its name."""
    num_parity_episodes: int = 3
    """Recorded episodes to replay, spread over the tasks."""
    save_videos: bool = False
    """Write MP4s of the episodes. A filmed episode takes several times as long: every frame is
    rendered."""
    videos_per_task: int | None = None
    """Film the first episodes of each task only. Default: all of them."""
    resume: bool = False
    """Continue with the results that are there; episodes that ended in an error are run again."""
    overwrite: bool = False
    """Delete the results that out_dir holds and start again."""

    @property
    def corruption(self) -> Corruption:
        """What --corrupt_world asks for; InvalidInputError if closed loop has it not."""
        kind = read_closed_loop_corruption(self.corrupt_world, "--corrupt_world")
        return kind.of_slot(self.corrupt_slot).of_frames(self.corrupt_frames)

    @property
    def outage(self) -> Outage | None:
        """What --outage_length and --outage_start ask for; None for none."""
        if self.outage_length == 0 or self.outage_start is None:
            return None
        return Outage(self.outage_length, *self.outage_start)

    def _require_whole_outage(self) -> None:
        require_at_least("outage_length", self.outage_length, 0)
        if self.outage_length == 0 and self.outage_start is not None:
            raise InvalidInputError("--outage_start has no effect without --outage_length")
        if self.world_input != "own" and self.outage_length == 0:
            raise InvalidInputError(
                f"--world_input {self.world_input} has no effect without --outage_length"
            )
        if self.world_input != "own" and self.corruption.name != "none":
            raise InvalidInputError(
                f"--world_input {self.world_input} and --corrupt_world {self.corruption} both say "
                "which world token is read; give one of them"
            )
        if self.outage_length > 0 and self.outage_start is None:
            raise InvalidInputError(
                f"--outage_length {self.outage_length} needs the frames that it may begin in, such "
                "as --outage_start 20 60"
            )
        if self.outage_start is not None and not 1 <= self.outage_start[0] <= self.outage_start[1]:
            first, last = self.outage_start
            raise InvalidInputError(
                f"--outage_start {first} {last}: give the first and the last frame that it may "
                "begin in, in that order and from 1 (the first frame of an episode is seen)"
            )

    def execution(self, chunk_size: int) -> ChunkExecution:
        """Return how a policy is executed that predicts so many actions.

        Raises:
            InvalidInputError: more actions are to be executed than are predicted.
        """
        coeff = self.temporal_ensemble_coeff
        n_action_steps = self.n_action_steps or (chunk_size if coeff is None else 1)
        if n_action_steps > chunk_size:
            raise InvalidInputError(
                f"--n_action_steps {n_action_steps}: the policy predicts {chunk_size} actions at a "
                f"time; give at most {chunk_size}"
            )
        return ChunkExecution(chunk_size, n_action_steps, coeff)

    def group_size(self, device_type: str) -> int:
        """Return how many observations go through the policy at a time on such a device."""
        return self.policy_batch_size or (1 if device_type == "cpu" else 16)

    def __post_init__(self) -> None:
        self._require_fitting_corruption()
        self._require_whole_outage()
        counts = ("n_trials", "env_num", "max_steps", "policy_batch_size", "n_action_steps")
        for name in (*counts, "videos_per_task"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"--{name} must be at least 1, not {value}")
        if self.videos_per_task is not None and not self.save_videos:
            raise InvalidInputError("--videos_per_task films nothing without --save_videos")
        if self.resume and self.overwrite:
            raise InvalidInputError("--resume and --overwrite contradict each other")
        if self.temporal_ensemble_coeff is not None and self.n_action_steps not in (None, 1):
            raise InvalidInputError(
                "--temporal_ensemble_coeff predicts at every step; leave out --n_action_steps "
                f"{self.n_action_steps} or make it 1"
            )

    def _require_fitting_corruption(self) -> None:
        corruption = self.corruption
        if corruption.is_partial and corruption.name == "none":
            flags = [] if corruption.slot is None else [f"--corrupt_slot {corruption.slot}"]
            if corruption.frames is not None:
                flags.append("--corrupt_frames {} {}".format(*corruption.frames))
            raise InvalidInputError(f"{' '.join(flags)} replaces nothing without --corrupt_world")
        if corruption.frames is None:
            return
        first, last = corruption.frames
        if not 0 <= first <= last:
            raise InvalidInputError(
                f"--corrupt_frames {first} {last}: give the first and the last frame, counted "
                "from 0 at the episode's start"
            )
        if self.max_steps is not None and first >= self.max_steps:
            raise InvalidInputError(
                f"--corrupt_frames {first} {last} lies behind --max_steps {self.max_steps}: no "
                "episode has these frames"
            )
