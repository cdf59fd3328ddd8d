"""A suite without physics, a policy without weights, and the command that rolls it out.

Environment processes import this file; what they do not need is imported where it is used.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.policy import Query
from benchmarks.rollouts.suite import EpisodeSpec, Observation
from world_modality.errors import MissingKeyError

IMAGE_KEY = "observation.image"
TASKS = ("left", "right")


class PointSimulator:
    """A point on a line that is to be brought to 0; some tasks break at the third step.

    Frames tell how many were observed before them, and whether torch is loaded beside them.
    """

    def __init__(self, task: str, suite: "PointSuite") -> None:
        self.task = task
        self._suite = suite
        self._position = 0.0
        self._step = self._num_observed = 0

    def reset(self, initial_state: int) -> None:
        self._position = float(np.random.default_rng(initial_state).uniform(0.5, 2))
        self._step = self._num_observed = 0

    def observe(self) -> Observation:
        self._num_observed += 1
        image = np.full((16, 17, 3), self._step, dtype=np.uint8)
        seen = [self._position, self._num_observed, float("torch" in sys.modules)]
        return {IMAGE_KEY: image, "observation.state": np.array(seen, dtype=np.float32)}

    def step(self, action: np.ndarray) -> bool:
        self._step += 1
        if self._suite.step_seconds:
            time.sleep(self._suite.step_seconds)
        if self._step == 3 and self._suite.is_broken:
            if self.task == "crashing":
                raise ZeroDivisionError("physics")
            if self.task == "dying":
                os._exit(9)
            if self.task == "hanging":
                time.sleep(1000)
        self._position += 0.1 * float(np.clip(action, -1, 1)[0])
        return abs(self._position) < 0.05

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class PointSuite:
    """Tasks crashing, dying and hanging break unless `mended` exists."""

    step_seconds: float = 0.0
    mended: Path | None = None
    name: str = "point"
    fps: int = 20
    action_dim: int = 1
    image_keys: Sequence[str] = (IMAGE_KEY,)
    state_keys: Sequence[str] = ("observation.state",)
    rendering: str = "flat"

    @property
    def is_broken(self) -> bool:
        return self.mended is None or not self.mended.exists()

    def record(self) -> dict[str, Any]:
        settings = {"style": self.rendering, "size": [16, 17]}
        return {"versions": {"point": "1.0"}, "gl_backend": "none", "rendering": settings}

    def open(self, task: str) -> PointSimulator:
        if task == "unknown":
            raise MissingKeyError("no task 'unknown' in the line; there are: left, right")
        return PointSimulator(task, self)


@dataclass
class PointMemory:
    """The policy's memory of an episode: its random numbers and what it was shown."""

    noise: np.random.Generator
    frames: dict[int, Observation] = field(default_factory=dict)
    queried: list[int] = field(default_factory=list)


@dataclass
class PointPolicy:
    """Walks towards 0, unsteadily, `gain` of the way in each chunk."""

    gain: float = 1.0
    n_action_steps: int = 4
    observed_lags: tuple[int, ...] = (0,)
    path: Path = Path("point.pt")
    sha256: str = "0"
    notes: tuple[str, ...] = ()
    model_type: str = "A"
    memories: dict[tuple[str, int], PointMemory] = field(default_factory=dict)
    batch_sizes: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, suite: PointSuite, config: RolloutConfig) -> "PointPolicy":
        """Read the gain from the checkpoint's file."""
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        steps = config.n_action_steps or 4
        return cls(float(path.read_text()), steps, path=path, sha256=sha256)

    @property
    def inputs(self) -> SimpleNamespace:
        return SimpleNamespace(image_key=IMAGE_KEY)

    def begin(self, episode: EpisodeSpec) -> PointMemory:
        noise = np.random.default_rng([episode.seed, episode.initial_state, len(episode.task)])
        memory = PointMemory(noise)
        self.memories[episode.task, episode.episode] = memory
        return memory

    def act(self, queries: Sequence[Query]) -> list[np.ndarray]:
        self.batch_sizes.append(len(queries))
        answers = []
        for query in queries:
            memory: PointMemory = query.memory
            memory.frames.update(query.frames)
            memory.queried.append(query.step)
            position = query.frames[query.step]["observation.state"][0]
            pull = -10 * self.gain * position / self.n_action_steps
            unsteady = memory.noise.normal(pull, 0.3, (self.n_action_steps, 1))
            answers.append(unsteady.astype(np.float32))
        return answers

    def record(self) -> dict[str, Any]:
        settings = {"n_action_steps": self.n_action_steps, "policy_batch_size": 1}
        return {"gain": self.gain, **settings}


def point_episodes(
    tasks: Sequence[str] = TASKS, num_episodes: int = 5, seed: int = 0, max_steps: int = 40
) -> list[EpisodeSpec]:
    """Return episodes whose initial states are functions of task and number."""
    return [
        EpisodeSpec(
            task=task,
            instruction=f"go {task}",
            episode=episode,
            initial_state=1000 * sum(task.encode()) + 100 * seed + episode,
            seed=seed,
            max_steps=max_steps,
        )
        for task in tasks
        for episode in range(num_episodes)
    ]


def write_checkpoint(path: Path, gain: float) -> Path:
    """Write what `PointPolicy.open` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(gain))
    return path


def point_config(folder: Path) -> RolloutConfig:
    """Return a run of one checkpoint that solves about half of the episodes."""
    checkpoint = write_checkpoint(folder / "logs" / "model_A.pt", 0.3)
    return RolloutConfig((checkpoint,), folder / "out", n_trials=3, env_num=2, check_parity=False)


def lines(config: RolloutConfig) -> list[dict[str, Any]]:
    """Return the results as they were written."""
    assert config.out_dir is not None
    text = (config.out_dir / "results.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def outcomes(config: RolloutConfig) -> list[dict[str, Any]]:
    """Return what the results say, in order, without what the clock says."""
    found = [{**line, "seconds": None} for line in lines(config)]
    return sorted(found, key=lambda line: (line["checkpoint"], line["task"], line["episode"]))


def evaluate_points(
    suite: PointSuite, episodes: Sequence[EpisodeSpec], config: RolloutConfig
) -> dict[str, Any]:
    """Evaluate with point policies in the place of real checkpoints."""
    from benchmarks.rollouts.evaluation import evaluate

    with mock.patch("benchmarks.rollouts.checkpoint_policy.CheckpointPolicy", PointPolicy):
        return evaluate(suite, episodes, config, {"easy": ["left", "far"], "hard": ["right"]})


def main() -> None:
    """Roll checkpoints out as a command: slowly, so that it can be interrupted."""
    from world_modality.cli import run_cli

    run_cli(
        RolloutConfig,
        lambda config: evaluate_points(
            PointSuite(step_seconds=0.002),
            point_episodes(num_episodes=config.n_trials, seed=config.seed),
            config,
        ),
    )
