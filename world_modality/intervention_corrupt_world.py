"""Corrupt the world token that a policy reads, and see whether its actions get worse."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from world_modality.evaluation.offline_run import (
    OfflineConfig,
    OfflineRun,
    print_header,
    write_report,
)
from world_modality.evaluation.plots import plot_corruption
from world_modality.policy.predictions import predict
from world_modality.statistics.intervals import Interval, defined_ratio, ratio_interval
from world_modality.statistics.resolution import NOT_RESOLVED, not_resolved
from world_modality.system.cli import run_cli
from world_modality.system.errors import require_at_least
from world_modality.tokens.corruption import OFFLINE


@dataclass(frozen=True)
class CorruptWorldConfig(OfflineConfig):
    """Measure the action error with right and with corrupted world tokens on held-out episodes."""

    num_draws: int = 5
    """How often each random corruption is drawn."""
    stale_steps: tuple[int, ...] = (1, 8, 32)
    """Ages, in frames, of the tokens that the corruption `stale` gives."""

    def __post_init__(self) -> None:
        require_at_least("num_draws", self.num_draws, 1)
        for steps in self.stale_steps:
            require_at_least("stale_steps", steps, 1)


@dataclass(frozen=True)
class CorruptionEffect:
    """What one corruption does to the action error.

    Attributes:
        corrupted_mse: mean over draws and frames, in training standard deviations squared.
        ratio: corrupted / clean, paired by episode; percentiles of ratios are those of their
            logarithms, so no bound lies below 0. No value where either error is 0.
        ratio_per_draw: the ratio of each draw alone; their spread is the draws' noise. None where
            either error is 0.
        changed_tokens: share of frames whose token the corruption really changed.
    """

    corrupted_mse: float
    ratio: Interval
    ratio_per_draw: list[float | None]
    changed_tokens: float


@dataclass(frozen=True)
class CorruptWorldResult:
    """The report.

    Attributes:
        run: what was evaluated.
        clean_mse: with the recorded tokens.
        corruptions: each one's effect.
        episodes: summed squared errors per episode, `clean` and under each corruption (the mean
            over its draws), from which several seeds' ratios can be put together.
    """

    run: dict[str, Any]
    clean_mse: Interval
    corruptions: dict[str, CorruptionEffect]
    episodes: dict[str, list[float]]


def run(config: CorruptWorldConfig) -> CorruptWorldResult:
    """Evaluate under each corruption, print, and write JSON and plot.

    Raises:
        MissingFileError, InvalidInputError: checkpoint or cache are missing, damaged or foreign.
    """
    opened = OfflineRun.open(config)
    with config.report_lock("corrupt_world"):
        counts = opened.episode_counts
        own = opened.input_tokens()
        recorded = opened.tokens[opened.val_frames] if own is None else own
        clean_sums = _sums_with(opened, own, "clean")
        effects = {}
        episodes = {"clean": clean_sums.tolist()}
        for name, draws in _corruptions(opened, config).items():
            corrupted = np.stack(
                [_sums_with(opened, opened.input_tokens(tokens), name) for tokens in draws]
            )
            # The mean of the differences, not of the sums: equal draws then give the clean sums
            # exactly, where adding n equal numbers and dividing by n may not.
            mean = clean_sums + (corrupted - clean_sums).mean(axis=0)
            episodes[name] = mean.tolist()
            effects[name] = _effect(
                clean_sums,
                corrupted,
                mean,
                mse_per_sum=1 / counts.sum(),
                changed=float(np.mean([tokens != recorded for tokens in draws])),
                seed=config.seed,
            )
        result = CorruptWorldResult(
            run=opened.describe(),
            clean_mse=ratio_interval(clean_sums, counts, config.seed),
            corruptions=effects,
            episodes=episodes,
        )
        _print(result)
        write_report(config, "corrupt_world", result, plot_corruption)
        return result


def _sums_with(
    opened: OfflineRun, tokens: Int[np.ndarray, " M"] | None, name: str
) -> Float[np.ndarray, " E"]:
    """Return each episode's squared error where the policy reads these tokens (None: its own)."""
    errors = predict(opened.policy, opened.tensors, opened.val_frames, tokens, progress=name)
    return opened.episode_sums(errors)


def _corruptions(opened: OfflineRun, config: CorruptWorldConfig) -> dict[str, list[np.ndarray]]:
    """Return, by name, the tokens of each draw at the validation frames."""
    recorded = opened.recorded_tokens
    corrupted: dict[str, list[np.ndarray]] = {}
    for kind in OFFLINE:
        for one in map(kind.aged, config.stale_steps) if kind.lag else [kind]:
            corrupted[str(one)] = [
                one.offline_tokens(recorded, np.random.default_rng([config.seed, i]))
                for i in range(1 if one.lag else config.num_draws)
            ]
    return corrupted


def _effect(
    clean: Float[np.ndarray, " E"],
    corrupted: Float[np.ndarray, "draws E"],
    mean: Float[np.ndarray, " E"],
    mse_per_sum: float,
    changed: float,
    seed: int,
) -> CorruptionEffect:
    return CorruptionEffect(
        corrupted_mse=float(mean.sum() * mse_per_sum),
        ratio=(
            ratio_interval(mean, clean, seed)
            if defined_ratio(mean.sum(), clean.sum()) is not None
            else Interval(None, None, None, len(clean))
        ),
        ratio_per_draw=[defined_ratio(one, clean.sum()) for one in corrupted.sum(axis=1)],
        changed_tokens=changed,
    )


def _print(result: CorruptWorldResult) -> None:
    print_header(result.run)
    print("\naction MSE in training std², corrupted / clean [95 % interval over episodes, paired]")
    print(f"  {'corruption':14}{'MSE':>10}{'ratio':>30}{'draws':>7}{'tokens changed':>16}")
    print(f"  {'clean':14}{result.clean_mse.value:>10.4f}")
    for name, effect in result.corruptions.items():
        print(
            f"  {name:14}{effect.corrupted_mse:>10.4f}{effect.ratio!s:>30}"
            f"{len(effect.ratio_per_draw):>7}{100 * effect.changed_tokens:>14.1f} %"
        )
    print("\n" + _reading(result))


def _reading(result: CorruptWorldResult) -> str:
    ratio = result.corruptions["task_shuffle"].ratio
    if ratio.value is None:
        return "An action error is exactly 0: the ratio of corrupted to clean is not defined."
    if ratio.low is None or ratio.high is None:
        return f"One held-out episode: whether the actions use the world token is {NOT_RESOLVED}."
    if ratio.low == ratio.high == 1:
        return "No corruption changes the actions: they do not depend on the world token."
    token, use = "Another frame's token of the same task", "the actions use what the token says"
    more = f"{100 * (ratio.value - 1):.1f} %"
    return {
        -1: f"{token} lowers the action error: the token misleads.",
        0: f"Whether {use} is {not_resolved('the interval spans 1')}.",
        1: f"{token} raises the action error by {more}: {use}.",
    }[ratio.side(1.0)]


def main() -> None:
    """Run the stage from the command line."""
    run_cli(CorruptWorldConfig, run)


if __name__ == "__main__":
    main()
