"""How much of the simulator's speed is left with the policy in the loop.

    python -m benchmarks.speed.bench_rollouts --checkpoint logs_c/model_C_epoch9.pt

Environment steps per second: with the checkpoint's policy in the rollout loop; with a policy that
does nothing, asked as often and shown the same frames; with the policy's own answers given again,
which moves the arm as the policy does but computes nothing; and of one environment stepped in this
process with every frame rendered. The first two are measured twice: the loop renders the frames
that the policy asks for, an environment of Gymnasium renders all. No episode ends before its last
step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.metaworld.cameras import CAMERAS, MetaworldCamera, MetaworldRendering
from benchmarks.metaworld.simulator import (
    SUITE_NAME,
    MetaworldSimulator,
    MetaworldSuite,
    evaluation_episodes,
)
from benchmarks.metaworld.tasks import select_tasks
from benchmarks.rollouts.checkpoint_policy import CheckpointPolicy
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.loop import RolloutPolicy, roll_out
from benchmarks.rollouts.slot import environment_slots
from benchmarks.rollouts.suite_fit import dataset_of, recorded_rendering
from benchmarks.rollouts.worker import Outcome
from benchmarks.speed.harness.idle_policies import (
    EveryFramePolicy,
    NoOpPolicy,
    RecordedPolicy,
    ReplayedPolicy,
)
from benchmarks.speed.harness.measuring import BenchConfig, Comparison, Figure, report, take_turns
from benchmarks.suite import EpisodeSpec, Suite
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class BenchRolloutsConfig(BenchConfig):
    """Measure environment steps per second with a policy in the loop and without, in one run."""

    checkpoint: Path = field(kw_only=True)
    """Checkpoint of the policy, trained on a recording of MetaWorld."""
    tasks: tuple[str, ...] = ("push-v3", "drawer-open-v3")
    """MetaWorld task names; with as many tasks as environments, each simulator is built once."""
    env_num: int = RolloutConfig.env_num
    """Environments that run at once."""
    num_rounds: int = 5
    """The compared policies take turns this many times."""
    episodes_per_task: int = 1
    """Episodes of each task in a turn."""
    max_steps: int = 200
    """Steps of each episode."""
    n_action_steps: int | None = None
    """Actions of each predicted chunk that are executed. Default: the whole chunk."""
    policy_batch_size: int | None = None
    """Observations that go through the policy at a time. Default: 1 on a CPU, 16 on a GPU."""
    cameras: int = 1
    """The environment alone is measured with one camera, with two, and so on up to this number."""
    device: str = "auto"
    """Where encoder and policy run: auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …"""


class EndlessSuite(MetaworldSuite):
    """MetaWorld in which nothing counts as solved."""

    def open(self, task: str) -> MetaworldSimulator:
        """Build the simulator of one task."""
        return _EndlessSimulator(task, self.rendering, self.image_keys)


class _EndlessSimulator(MetaworldSimulator):
    def step(self, action: np.ndarray) -> bool:
        super().step(action)
        return False


def measure_loop(
    policy: RolloutPolicy, suite: Suite, episodes: list[EpisodeSpec], config: BenchRolloutsConfig
) -> Iterator[Figure]:
    """Compare the policy with those that compute nothing."""
    recorded = RecordedPolicy(policy)
    seeing = EveryFramePolicy(policy)
    policies: dict[str, RolloutPolicy] = {
        "policy": policy,
        "no-op": NoOpPolicy(policy, suite.action_dim),
        "policy's actions given again": ReplayedPolicy(recorded),
        "policy, every frame": seeing,
        "no-op, every frame": NoOpPolicy(seeing, suite.action_dim),
    }
    size = int(policy.record()["policy_batch_size"])

    def refuse_error(outcome: Outcome) -> None:
        if outcome.error is not None:
            raise RuntimeError(f"{outcome.episode.task} broke off: {outcome.error}")

    with environment_slots(suite, config.env_num) as slots:

        def play(own: RolloutPolicy) -> None:
            roll_out(own, episodes, slots, refuse_error, batch_size=size)

        play(recorded)  # builds simulators and loads libraries, too
        turns = {name: partial(play, own) for name, own in policies.items()}
        seconds = take_turns(turns, config.num_rounds)
    num_steps = len(episodes) * config.max_steps
    speed = Comparison.rates("steps/s", seconds, num_steps)
    yield from speed.figures()
    yield speed.figure("policy", "no-op", "at least 0.9")
    yield speed.figure("policy", "policy's actions given again", "at least 0.9")
    yield speed.figure("policy, every frame", "no-op, every frame", "at least 0.9")


def measure_alone(
    rendering: MetaworldRendering, num_cameras: int, episode: EpisodeSpec, num_rounds: int
) -> Figure:
    """Measure one environment in this process that renders every frame from some cameras."""
    others = [name for name in CAMERAS if name != rendering.camera][: num_cameras - 1]
    further = tuple(MetaworldCamera.called(name) for name in others)
    suite = EndlessSuite(replace(rendering, further_cameras=further))
    simulator = suite.open(episode.task)
    action = np.zeros(suite.action_dim, dtype=np.float32)

    def play() -> None:
        simulator.reset(episode.initial_state)
        simulator.observe()
        for _ in range(episode.max_steps):
            simulator.step(action)
            simulator.observe()

    name = "one environment alone, every frame"
    if num_cameras > 1:
        name += f", {num_cameras} cameras"
    (seconds,) = take_turns({name: play}, num_rounds).values()
    simulator.close()
    return Figure.alone(name, "steps/s", *(episode.max_steps / seconds))


def measure(config: BenchRolloutsConfig) -> Iterator[Figure]:
    """Open the policy in the rendering of its recording, and measure.

    Raises:
        InvalidInputError: more cameras than MetaWorld has.
    """
    if not 1 <= config.cameras <= len(CAMERAS):
        raise InvalidInputError(
            f"--cameras {config.cameras}: MetaWorld has {len(CAMERAS)}; give 1 to {len(CAMERAS)}"
        )
    dataset = dataset_of(config.checkpoint)
    rendering = recorded_rendering(config.checkpoint, dataset, MetaworldRendering, SUITE_NAME)
    suite = EndlessSuite(rendering)
    settings = RolloutConfig(
        checkpoint=(config.checkpoint,),
        env_num=config.env_num,
        device=config.device,
        n_action_steps=config.n_action_steps,
        policy_batch_size=config.policy_batch_size,
    )
    policy = CheckpointPolicy.open(config.checkpoint, suite, settings)
    seen = suite.observing(policy.inputs.image_keys)
    tasks = select_tasks(config.tasks)
    episodes = evaluation_episodes(tasks, config.episodes_per_task, 0, config.max_steps)
    yield from measure_loop(policy, seen, episodes, config)
    for num_cameras in range(1, config.cameras + 1):
        yield measure_alone(rendering, num_cameras, episodes[0], config.num_rounds)


def run(config: BenchRolloutsConfig) -> list[Figure]:
    """Measure, print the table, and write JSON if asked."""
    return report(config, measure(config))


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchRolloutsConfig, run)


if __name__ == "__main__":
    main()
