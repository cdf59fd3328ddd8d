"""What it costs a policy to remember in closed loop: its past as world tokens, or as embeddings.

    python -m benchmarks.speed.bench_history

Two figures of each: the bytes that an episode's memory holds of what was observed, and the
processor time of a policy call at batch 1. Frames are encoded once either way, so that the encoder
is left out. Weights, embeddings and tokens are drawn.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.speed.harness.measuring import (
    BenchConfig,
    Comparison,
    Figure,
    report,
    take_turns,
    timed,
)
from world_modality.acting.episode_memory import EncodedFrame, EpisodeMemory
from world_modality.acting.traced_actions import TracedActions
from world_modality.acting.world_input import EpisodeWorldInput
from world_modality.cache.frame_shapes import (
    FrameShape,
    ObservationShape,
    WindowShape,
    WorldShape,
)
from world_modality.policy.config import PolicyConfig, TrunkConfig, WorldInputConfig
from world_modality.policy.network import WorldPolicy
from world_modality.system.cli import run_cli

NO_PAST = "no past"


@dataclass(frozen=True)
class BenchHistoryConfig(BenchConfig):
    """Measure a past of world tokens against the same past of embeddings."""

    lengths: tuple[int, ...] = (8, 16)
    """Numbers of earlier frames that are remembered."""
    stride: int = 8
    """Frames between those that are remembered."""
    embedding_dim: int = 384
    """Dimension of a frame's embedding."""
    grid_size: int = 1
    """Side g of the grid of g x g vectors that are seen of a frame, each a token of the network."""
    d_model: int = 256
    """Width of the policy."""
    n_layers: int = 4
    """Depth of the policy."""
    num_rounds: int = 5
    """Rounds that are measured, in turns."""
    calls_per_round: int = 100
    """Policy calls of a round."""


def windows(config: BenchHistoryConfig) -> dict[str, WindowShape]:
    """Return what is compared, by name."""
    compared = {NO_PAST: WindowShape()}
    for n in config.lengths:
        compared[f"--world_history {n}"] = WindowShape(
            world_history=n, world_history_stride=config.stride
        )
        compared[f"--context_frames {n + 1}"] = WindowShape(
            context_frames=n + 1, context_stride=config.stride
        )
    return compared


def policy_config(config: BenchHistoryConfig, window: WindowShape) -> PolicyConfig:
    """Return arm C that sees this window."""
    observation = ObservationShape(config.embedding_dim, grid_size=config.grid_size)
    return PolicyConfig(
        model_type="C",
        frame=FrameShape(observation, WorldShape(1024), state_dim=8, action_dim=7),
        window=window,
        trunk=TrunkConfig(d_model=config.d_model, n_layers=config.n_layers),
        world_input=WorldInputConfig(),
    )


def remembered(policy: PolicyConfig) -> EpisodeMemory:
    """Return the memory of an episode in which every frame was observed that is ever needed."""
    window, observation = policy.window, policy.frame.observation
    lags = window.world_lags
    memory = EpisodeMemory(
        instruction=None,
        world=EpisodeWorldInput(0, None, np.random.default_rng(0), lags=lags),
    )
    stride = max(window.context_stride, window.world_history_stride)
    shape = (*observation.axis, observation.embedding_dim)
    rng = np.random.default_rng(0)
    for frame in range(0, 1 + 40 * stride, stride):
        embedding = rng.standard_normal(shape).astype(np.float16)
        memory.frames[frame] = EncodedFrame(embedding, np.zeros(policy.frame.state_dim, np.float32))
        memory.tokens[frame] = int(rng.integers(policy.frame.world.num_world_tokens))
        memory.forget_before(frame, window.context_lags, lags)
    return memory


def state_bytes(memory: EpisodeMemory) -> int:
    """Return the bytes of embeddings, states and tokens (4 bytes each)."""
    frames = sum(frame.embedding.nbytes + frame.state.nbytes for frame in memory.frames.values())
    return frames + sum(4 * np.size(tokens) for tokens in memory.tokens.values())


def policy_call(policy: PolicyConfig, memory: EpisodeMemory) -> Callable[[], object]:
    """Return a call at the memory's newest frame: inputs put together, actions predicted."""
    actions = TracedActions(WorldPolicy(policy).eval(), 1)
    step = max(memory.frames)

    def call() -> object:
        context = memory.context(step, policy.window.context_lags)
        return actions(
            torch.from_numpy(np.stack([frame.embedding for frame in context])[None]),
            torch.from_numpy(np.stack([frame.state for frame in context])[None]),
            torch.from_numpy(np.array([memory.world_tokens(step)], dtype=np.int64)),
        )

    return call


def measure(config: BenchHistoryConfig) -> Iterator[Figure]:
    """Yield the figures."""
    torch.set_num_threads(1)
    policies = {name: policy_config(config, window) for name, window in windows(config).items()}
    memories = {name: remembered(policy) for name, policy in policies.items()}
    held = {name: [float(state_bytes(memory))] for name, memory in memories.items()}
    yield from _compared(Comparison("bytes remembered", held))

    def turn(name: str) -> Callable[[], float]:
        call = policy_call(policies[name], memories[name])

        def calls() -> None:
            for _ in range(config.calls_per_round):
                call()

        return lambda: timed(calls).cpu

    seconds = take_turns({name: turn(name) for name in policies}, config.num_rounds)
    per_call = {name: 1000 * own / config.calls_per_round for name, own in seconds.items()}
    yield from _compared(Comparison("ms of CPU a call", per_call))


def _compared(comparison: Comparison) -> Iterator[Figure]:
    for name in comparison.rounds:
        yield comparison.figure(name, "" if name == NO_PAST else NO_PAST)


def run(config: BenchHistoryConfig) -> list[Figure]:
    """Measure, print the table, and write JSON if asked."""
    return report(config, measure(config))


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchHistoryConfig, run)


if __name__ == "__main__":
    main()
