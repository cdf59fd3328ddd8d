"""Evaluate a checkpoint on held-out episodes: action error and world-token accuracy."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from world_modality.evaluation.offline_config import OfflineConfig
from world_modality.system.cli import run_cli

if TYPE_CHECKING:
    from world_modality.evaluation.future_metrics import FutureMetrics
    from world_modality.evaluation.metrics import HorizonAccuracy

PREDICTORS = {
    "model": "the policy",
    "task_mean": "training mean of the task",
    "last_action": "last action held",
}
# Where the actions attend to the future: with the true one, which only offline evaluation has.
TRUE_FUTURE = {"true_future": "the policy, shown the future"}


@dataclass(frozen=True)
class EvalOfflineConfig(OfflineConfig):
    """Action MSE and world-token accuracy on held-out episodes, beside trivial predictors."""


@dataclass(frozen=True)
class EvalOfflineResult:
    """The report.

    Attributes:
        run: what was evaluated.
        actions: per predictor `mse`, `mse_raw` (intervals) and their values per chunk step.
        episodes: the task of each episode, the policy's error sums and their counts, and its token
            hits and their counts per horizon and episode, from which two checkpoints on the same
            cache can be compared pairwise.
        world: accuracies per horizon on `all` and on `changed` frames, and where a frame has
            several world tokens on those of each slot; None for an arm that predicts no tokens.
        futures: by target how well embeddings, their changes or change tokens are predicted.
    """

    run: dict[str, Any]
    actions: dict[str, dict[str, Any]]
    episodes: dict[str, list[int] | list[float] | list[list[float]]]
    world: "dict[str, list[HorizonAccuracy]] | None"
    futures: "FutureMetrics"


def run(config: EvalOfflineConfig) -> EvalOfflineResult:
    """Evaluate, print, and write JSON and plot.

    Raises:
        MissingFileError, InvalidInputError: checkpoint or cache are missing, damaged or foreign.
    """
    from world_modality.evaluation.future_metrics import future_metrics, future_sums
    from world_modality.evaluation.metrics import (
        action_metrics,
        token_sums,
        trivial_errors,
        world_metrics,
    )
    from world_modality.evaluation.offline_run import OfflineRun, write_report
    from world_modality.evaluation.plots import plot_eval
    from world_modality.policy.predictions import predict

    opened = OfflineRun.open(config)
    with config.report_lock("eval_offline"):
        inputs = opened.policy, opened.tensors, opened.val_frames, opened.input_tokens()
        errors = predict(*inputs, "evaluate")
        predictors = {"model": errors, **trivial_errors(opened)}
        policy = opened.policy.config
        if policy.target.future_to_action and not policy.oracle:
            predictors["true_future"] = predict(*inputs, "true future", true_future=True)
        result = EvalOfflineResult(
            run=opened.describe(),
            actions={
                name: action_metrics(opened, predicted, config.seed)
                for name, predicted in predictors.items()
            },
            episodes={
                "episode_index": opened.val_ids,
                "task_index": opened.val_tasks,
                "squared_error_sum": opened.episode_sums(errors).tolist(),
                "num_steps": opened.episode_counts.tolist(),
                **({} if errors.token_rank is None else token_sums(opened, errors)),
                **future_sums(opened, errors),
                **{
                    f"{name}_squared_error_sum": opened.episode_sums(shown).tolist()
                    for name, shown in predictors.items()
                    if name in TRUE_FUTURE
                },
            },
            world=(
                None if errors.token_rank is None else world_metrics(opened, errors, config.seed)
            ),
            futures=future_metrics(opened, errors, config.seed),
        )
        _print(result)
        write_report(config, "eval_offline", result, plot_eval)
        return result


def _print(result: EvalOfflineResult) -> None:
    from world_modality.evaluation.offline_run import print_header

    print_header(result.run)
    print("\naction MSE [95 % interval over episodes]")
    print(f"  {'predictor':28}{'in training std²':>32}{'raw units²':>36}")
    for name, metrics in result.actions.items():
        label = {**PREDICTORS, **TRUE_FUTURE}[name]
        print(f"  {label:28}{metrics['mse']!s:>32}{metrics['mse_raw']!s:>36}")
    steps = ", ".join(f"{value:.4g}" for value in result.actions["model"]["mse_per_step"])
    print(f"  the policy, per step of the chunk: {steps}")
    _print_futures(result.futures)
    if result.world is None:
        print(f"\nworld tokens: arm {result.run['model_type']} predicts none")
        return
    titles = {
        "all": "all frames",
        "changed": "where the token changes (copy is 0; change_bigram knows that it changes)",
    }
    for subset, title in titles.items():
        print(f"\nworld-token accuracy, {title}")
        columns = _COLUMNS[subset]
        print(f"  {'k':>3}{'frames':>8}" + "".join(f"{c:>24}" for c in columns) + f"{'n':>9}")
        for row in result.world[subset]:
            cells = "".join(f"{row.accuracy[c].percent:>24}" for c in columns)
            print(f"  {row.horizon:>3}{row.frames_ahead:>8}{cells}{row.num_frames:>9}")
    first = result.world["all"][0].model_minus_bigram
    print(f"\n  top-1 at k = 1, model minus bigram: {first.percent} (in points, paired)")
    _print_slots(result.world)


def _print_futures(futures: "FutureMetrics") -> None:
    """Print what is predicted of the frames ahead that is no world token."""
    from world_modality.evaluation.future_metrics import FUTURE_TITLES, ChangeAccuracy

    for target, rows in futures.items():
        title, trivial = FUTURE_TITLES[target]
        print(f"\n{title}, beside a trivial predictor ({trivial})")
        for row in rows:
            if isinstance(row, ChangeAccuracy):
                found = {name: interval.percent for name, interval in row.accuracy.items()}
            else:
                found = {"R2": row.r2.with_decimals(3)}
                for name, values in (("error", row.squared_error), ("cosine", row.cosine)):
                    found |= {f"{name} {who}": one.with_decimals(3) for who, one in values.items()}
            shown = "; ".join(f"{name} {value}" for name, value in found.items())
            print(f"  k = {row.horizon}, {row.frames_ahead} frames ahead: {shown}")


def _print_slots(world: "dict[str, list[HorizonAccuracy]]") -> None:
    """Print what is known of each slot; nothing where a frame has one world token."""
    from world_modality.evaluation.metrics import SlotAccuracy

    rows = {
        "mean" if name == "all" else name.removeprefix("all_slot"): horizons[0]
        for name, horizons in world.items()
        if name.startswith("all")
    }
    by_slot = {name: row for name, row in rows.items() if isinstance(row, SlotAccuracy)}
    if not by_slot:
        return
    print("\nworld tokens by slot at k = 1, all frames; cross-entropy in nats (the rest in JSON)")
    columns = ("model_top1", "copy_top1", "bigram_top1")
    titles = [*columns, *(f"{name} nats" for name in by_slot["mean"].cross_entropy)]
    print(f"  {'slot':>6}" + "".join(f"  {title:>22}" for title in titles))
    for name, row in by_slot.items():
        cells = [row.accuracy[column].percent for column in columns]
        cells += [interval.with_decimals(3) for interval in row.cross_entropy.values()]
        print(f"  {name:>6}" + "".join(f"  {cell:>22}" for cell in cells))


_COLUMNS = {
    "all": ("model_top1", "model_top5", "copy_top1", "bigram_top1", "bigram_top5"),
    "changed": ("model_top1", "model_top5", "change_bigram_top1", "bigram_top1", "bigram_top5"),
}


def main() -> None:
    """Run the stage from the command line."""
    run_cli(EvalOfflineConfig, run)


if __name__ == "__main__":
    main()
