"""How much of the simulator's speed is left with the policy in the loop.

    python -m benchmarks.speed.bench_rollouts --checkpoint logs_c/model_C_epoch9.pt

Environment steps per second: with the checkpoint's policy in the rollout loop; with a policy that
does nothing, asked as often and shown the same frames; with the policy's own answers given again,
which moves the arm as the policy does but computes nothing; and of one environment stepped in this
process with every frame rendered. The first two are measured twice: the loop renders the frames
that the policy asks for, an environment of Gymnasium renders all. No episode ends before its last
step.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.loop import RolloutPolicy
from benchmarks.speed.harness.idle_policies import (
    EveryFramePolicy,
    NoOpPolicy,
    RecordedPolicy,
    ReplayedPolicy,
)
from benchmarks.suite import EpisodeSpec, Observation, Simulator, Suite
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli

if TYPE_CHECKING:
    from benchmarks.rollouts.slot import EnvironmentSlot

_WANTED_RATIO = 0.8


@dataclass(frozen=True)
class BenchRolloutsConfig:
    """Measure environment steps per second with a policy in the loop and without, in one run."""

    checkpoint: Path
    """The policy, trained on a recording of MetaWorld."""
    tasks: tuple[str, ...] = ("push-v3", "drawer-open-v3")
    """MetaWorld task names; as many as environments saves building simulators anew."""
    env_num: int = RolloutConfig.env_num
    """Environments that run at once."""
    num_rounds: int = 5
    """The policies take turns this many times."""
    episodes_per_task: int = 1
    """Episodes of each task in a turn."""
    max_steps: int = 200
    """Steps of each episode."""
    n_action_steps: int | None = None
    """Actions of each predicted chunk that are executed. Default: the whole chunk."""
    policy_batch_size: int | None = None
    """Observations that go through the policy at a time. Default: 1 on a CPU, 16 on a GPU."""
    device: str = "auto"
    """Where encoder and policy run."""
    json_path: Path | None = None
    """Where to write the figures, if anywhere."""


@dataclass(frozen=True)
class EndlessSuite:
    """A suite in which nothing counts as solved."""

    suite: Suite

    @property
    def name(self) -> str:
        """The suite's name."""
        return self.suite.name

    @property
    def fps(self) -> int:
        """Frames per second of simulated time."""
        return self.suite.fps

    @property
    def action_dim(self) -> int:
        """A."""
        return self.suite.action_dim

    @property
    def image_keys(self) -> Sequence[str]:
        """The cameras in an observation."""
        return self.suite.image_keys

    @property
    def state_keys(self) -> Sequence[str]:
        """The vectors in an observation."""
        return self.suite.state_keys

    def record(self) -> dict[str, Any]:
        """Return the suite's record."""
        return self.suite.record()

    def open(self, task: str) -> Simulator:
        """Build the simulator of one task."""
        return _EndlessSimulator(self.suite.open(task))


class _EndlessSimulator:
    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self.task = simulator.task

    def reset(self, initial_state: int) -> None:
        self._simulator.reset(initial_state)

    def observe(self) -> Observation:
        return self._simulator.observe()

    def step(self, action: np.ndarray) -> bool:
        self._simulator.step(action)
        return False

    def close(self) -> None:
        self._simulator.close()


def measure_loop(
    policy: RolloutPolicy, suite: Suite, episodes: list[EpisodeSpec], config: BenchRolloutsConfig
) -> dict[str, float]:
    """Return steps a second of the policy and of those that compute nothing, and their ratios."""
    from benchmarks.rollouts.slot import environment_slots

    lags = tuple(policy.observed_lags)
    recorded = RecordedPolicy(policy)
    turns: dict[str, RolloutPolicy] = {
        "policy": policy,
        "no_op": NoOpPolicy(policy.n_action_steps, lags, suite.action_dim),
        "replayed": ReplayedPolicy(policy.n_action_steps, lags, recorded.answers),
        "policy_all_frames": (seeing := EveryFramePolicy(policy)),
        "no_op_all_frames": NoOpPolicy(
            policy.n_action_steps, seeing.observed_lags, suite.action_dim
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    size = int(policy.record()["policy_batch_size"])
    with environment_slots(suite, config.env_num) as slots:
        _play(recorded, episodes, slots, size)  # builds simulators and loads libraries, too
        for _ in range(config.num_rounds):
            for name, turn in turns.items():
                seconds[name].append(_timed(lambda p=turn: _play(p, episodes, slots, size)))  # type: ignore[misc]
    num_steps = len(episodes) * config.max_steps
    # Medians, since machines are noisy.
    speed = {f"{name}_steps_per_s": num_steps / _median(times) for name, times in seconds.items()}
    for one, peer, name in (
        ("policy", "no_op", "ratio"),
        ("policy", "replayed", "replayed_ratio"),
        ("policy_all_frames", "no_op_all_frames", "all_frames_ratio"),
    ):
        ratios = np.array(seconds[peer]) / np.array(seconds[one])
        speed |= {
            name: _median(ratios),
            f"{name}_min": float(ratios.min()),
            f"{name}_max": float(ratios.max()),
        }
    return speed


def _median(values: Sequence[float] | np.ndarray) -> float:
    return float(np.median(values))


def measure_alone(suite: Suite, episode: EpisodeSpec, num_rounds: int) -> float:
    """Return steps a second of one environment in this process that renders every frame."""
    simulator = suite.open(episode.task)
    action = np.zeros(suite.action_dim, dtype=np.float32)

    def play() -> None:
        simulator.reset(episode.initial_state)
        simulator.observe()
        for _ in range(episode.max_steps):
            simulator.step(action)
            simulator.observe()

    seconds = [_timed(play) for _ in range(1 + num_rounds)]
    simulator.close()
    return episode.max_steps / _median(seconds[1:])


def run(config: BenchRolloutsConfig) -> dict[str, Any]:
    """Measure, print the figures, and write JSON if asked."""
    from benchmarks.metaworld.simulator import (
        SUITE_NAME,
        MetaworldRendering,
        MetaworldSuite,
        evaluation_episodes,
    )
    from benchmarks.metaworld.tasks import select_tasks
    from benchmarks.rollouts.acting.checkpoint_policy import CheckpointPolicy
    from benchmarks.rollouts.acting.suite_fit import dataset_of, recorded_rendering

    dataset = dataset_of(config.checkpoint)
    rendering = recorded_rendering(config.checkpoint, dataset, MetaworldRendering, SUITE_NAME)
    suite = EndlessSuite(MetaworldSuite(rendering))
    settings = RolloutConfig(
        checkpoint=(config.checkpoint,),
        env_num=config.env_num,
        device=config.device,
        n_action_steps=config.n_action_steps,
        policy_batch_size=config.policy_batch_size,
    )
    policy = CheckpointPolicy.open(config.checkpoint, suite, settings)
    episodes = evaluation_episodes(
        select_tasks(config.tasks), config.episodes_per_task, 0, config.max_steps
    )
    speed = measure_loop(policy, suite, episodes, config)
    speed["alone_steps_per_s"] = measure_alone(suite, episodes[0], config.num_rounds)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, device {config.device}"
    print(f"machine: {machine}")
    print(f"{config.env_num} environments, {policy.n_action_steps} actions a query")
    for what, name, peer, ratio in (
        ("the frames that the policy asks for", "policy", "no_op", "ratio"),
        ("every frame rendered", "policy_all_frames", "no_op_all_frames", "all_frames_ratio"),
        ("its actions given again, not computed", "policy", "replayed", "replayed_ratio"),
    ):
        low, high = speed[f"{ratio}_min"], speed[f"{ratio}_max"]
        print(
            f"{what}: {speed[f'{name}_steps_per_s']:.0f} steps/s with the policy, "
            f"{speed[f'{peer}_steps_per_s']:.0f} with one that computes nothing; ratio "
            f"{speed[ratio]:.2f} ({low:.2f} to {high:.2f}), wanted at least {_WANTED_RATIO}"
        )
    print(f"one environment, every frame rendered: {speed['alone_steps_per_s']:.0f} steps/s")
    result = {"machine": machine, "policy": policy.record(), "speed": speed}
    if config.json_path is not None:
        write_json(config.json_path, result)
    return result


def _play(
    policy: RolloutPolicy,
    episodes: list[EpisodeSpec],
    slots: "list[EnvironmentSlot]",
    batch_size: int,
) -> None:
    from benchmarks.rollouts.loop import roll_out
    from benchmarks.rollouts.worker import Outcome

    def refuse_error(outcome: Outcome) -> None:
        if outcome.error is not None:
            raise RuntimeError(f"{outcome.episode.task} broke off: {outcome.error}")

    roll_out(policy, episodes, slots, refuse_error, batch_size=batch_size)


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchRolloutsConfig, run)


if __name__ == "__main__":
    main()
