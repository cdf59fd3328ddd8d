"""Corrupt the world token that a policy reads, and see whether its actions get worse."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from world_modality.evaluation.offline_config import OfflineConfig
from world_modality.statistics.intervals import Interval, defined_ratio, ratio_interval
from world_modality.statistics.resolution import NOT_RESOLVED, not_resolved
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError, require_at_least
from world_modality.tokens.corruption import OFFLINE, Corruption

if TYPE_CHECKING:
    from world_modality.evaluation.offline_run import OfflineRun


@dataclass(frozen=True)
class CorruptWorldConfig(OfflineConfig):
    """Measure the action error with right and with corrupted world tokens on held-out episodes."""

    num_draws: int = 5
    """How often each random corruption is drawn."""
    stale_steps: tuple[int, ...] = (1, 8, 32)
    """Ages in frames of the stale tokens."""
    corrupt_slot: int | None = None
    """Make only this world token of a frame wrong, counted from 0; without it all of them."""

    corrupt_history_position: tuple[int, ...] = ()
    """Positions of the history that are made wrong one at a time, a row each, beside the rows in
    which all are wrong: 0 is the present frame, 1 the frame before it that is read, and so on."""

    def report_dir(self, report: str) -> Path:
        """Return the folder for this report: one slot's does not replace that of all slots."""
        slot = "" if self.corrupt_slot is None else f"_slot{self.corrupt_slot}"
        return super().report_dir(report + slot)

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
        changed_tokens: share of the tokens made wrong that the corruption really changed.
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
        corruptions: each one's effect, by its spelling; `<name>@<slot>` where one slot is hit,
            `<name>@position<i>` where one position of the history is.
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
    from world_modality.evaluation.offline_run import OfflineRun, write_report
    from world_modality.evaluation.plots import plot_corruption

    opened = OfflineRun.open(config)
    _require_slot(opened, config)
    _require_positions(opened, config)
    with config.report_lock("corrupt_world"):
        counts = opened.episode_counts
        own = opened.input_tokens()
        tokens_read = opened.recorded_tokens.read_at(opened.val_frames) if own is None else own
        clean_sums = _sums_with(opened, own, "clean")
        effects = {}
        episodes = {"clean": clean_sums.tolist()}
        for one, draws in _corruptions(opened, config, own).items():
            name = str(one)
            corrupted = np.stack(
                [_sums_with(opened, opened.input_tokens(tokens), name) for tokens in draws]
            )
            # The mean of the differences, not of the sums: equal draws then give the clean sums
            # exactly, where adding n equal numbers and dividing by n may not.
            mean = clean_sums + (corrupted - clean_sums).mean(axis=0)
            episodes[name] = mean.tolist()
            hit = _hit_tokens(opened, tokens_read, one)
            effects[name] = _effect(
                clean_sums,
                corrupted,
                mean,
                mse_per_sum=1 / counts.sum(),
                changed=float(
                    np.mean([_hit_tokens(opened, tokens, one) != hit for tokens in draws])
                ),
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


def _require_slot(opened: "OfflineRun", config: CorruptWorldConfig) -> None:
    """Check that a frame has the slot that is made wrong.

    Raises:
        InvalidInputError: it has no such slot.
    """
    num_slots, slot = opened.num_world_slots, config.corrupt_slot
    if slot is not None and not 0 <= slot < num_slots:
        raise InvalidInputError(
            f"--corrupt_slot {slot}: a frame of {config.dataset_name} has {num_slots} world "
            f"token{'s' if num_slots > 1 else ''}, numbered from 0 to {num_slots - 1}"
        )


def _require_positions(opened: "OfflineRun", config: CorruptWorldConfig) -> None:
    """Check that the history has the positions that are made wrong.

    Raises:
        InvalidInputError: it has no such position, or the policy reads no history.
    """
    history = opened.policy.config.window.world_history
    for position in config.corrupt_history_position:
        if history == 0:
            raise InvalidInputError(
                f"--corrupt_history_position {position}: {config.checkpoint} reads the present "
                "frame's token alone; leave the flag out, or train with --world_history"
            )
        if not 0 <= position <= history:
            raise InvalidInputError(
                f"--corrupt_history_position {position}: {config.checkpoint} reads "
                f"--world_history {history}, positions 0 (the present frame) to {history}"
            )


def _hit_tokens(
    opened: "OfflineRun", tokens: Int[np.ndarray, " M *RW"], corruption: Corruption
) -> Int[np.ndarray, "M hit"]:
    """Return those of the tokens that are read which this corruption makes wrong."""
    num_read = len(opened.recorded_tokens.lags)
    hit = corruption.is_hit(num_read, opened.num_world_slots)
    return tokens.reshape(len(tokens), *hit.shape)[:, hit]


def _sums_with(
    opened: "OfflineRun", tokens: Int[np.ndarray, " M *RW"] | None, name: str
) -> Float[np.ndarray, " E"]:
    """Return each episode's squared error where the policy reads these tokens (None: its own)."""
    from world_modality.policy.predictions import predict

    errors = predict(opened.policy, opened.tensors, opened.val_frames, tokens, progress=name)
    return opened.episode_sums(errors)


def _corruptions(
    opened: "OfflineRun", config: CorruptWorldConfig, own: Int[np.ndarray, " M *RW"] | None
) -> dict[Corruption, list[np.ndarray]]:
    """Return the tokens of each draw at the validation frames.

    `own` is what is read there otherwise, None for the recorded tokens.
    """
    recorded = opened.recorded_tokens
    has_history = len(recorded.lags) > 1
    corrupted: dict[Corruption, list[np.ndarray]] = {}
    for kind in OFFLINE:
        if kind.of_stream and not has_history:
            continue
        for every in map(kind.aged, config.stale_steps) if kind.lag else [kind]:
            for position in (None, *config.corrupt_history_position):
                one = every.of_slot(config.corrupt_slot).of_position(position)
                corrupted[one] = [
                    one.offline_tokens(recorded, np.random.default_rng([config.seed, i]), own)
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
    from world_modality.evaluation.offline_run import print_header

    print_header(result.run)
    print("\naction MSE in training std², corrupted / clean [95 % interval over episodes, paired]")
    width = max(14, *(len(name) + 2 for name in result.corruptions))
    print(f"  {'corruption':{width}}{'MSE':>10}{'ratio':>30}{'draws':>7}{'tokens changed':>16}")
    print(f"  {'clean':{width}}{result.clean_mse.value:>10.4f}")
    for name, effect in result.corruptions.items():
        print(
            f"  {name:{width}}{effect.corrupted_mse:>10.4f}{effect.ratio!s:>30}"
            f"{len(effect.ratio_per_draw):>7}{100 * effect.changed_tokens:>14.1f} %"
        )
    print("\n" + _reading(result))


def _reading(result: CorruptWorldResult) -> str:
    name = next(one for one in result.corruptions if one.startswith("task_shuffle"))
    ratio = result.corruptions[name].ratio
    if ratio.value is None:
        return "An action error is exactly 0: the ratio of corrupted to clean is not defined."
    if ratio.low is None or ratio.high is None:
        return f"One held-out episode: whether the actions use the world token is {NOT_RESOLVED}."
    if ratio.low == ratio.high == 1:
        return "No corruption changes the actions: they do not depend on the world token."
    token, use = "Another frame's token of the same task", "the actions use what the token says"
    if "@" in name:
        slot = name.split("@")[1]
        token, use = (
            f"{token} in slot {slot}",
            f"the actions use what the token of slot {slot} says",
        )
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
