"""The flags that closed-loop evaluation has in every suite."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from world_modality.acting.action_chunks import ChunkExecution
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.corruption import CLOSED_LOOP, Corruption, read_corruption, spellings

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
        kind = read_corruption(self.corrupt_world, "--corrupt_world", CLOSED_LOOP)
        return kind.of_slot(self.corrupt_slot)

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
        if self.corruption.slot is not None and self.corruption.name == "none":
            raise InvalidInputError(
                f"--corrupt_slot {self.corruption.slot} replaces nothing without --corrupt_world"
            )
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
