"""Evaluate a two-head checkpoint on held-out episodes: actions, world tokens and explanations."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coc_vla.events.claims import claimed_events
from coc_vla.events.motion_columns import MotionFlags
from coc_vla.events.recorded import EVENT_TYPES, EventType, recorded_events
from coc_vla.head.report import markdown_report, plot_explanations
from coc_vla.head.scores import event_groups
from world_modality.cache.contract import sha256_of_file
from world_modality.evaluation.offline_config import OfflineConfig
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.atomic import replacing, write_json
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError, require_at_least
from world_modality.tokens.corruption import read_corruption

if TYPE_CHECKING:
    from coc_vla.head.evaluation import Condition, ConditionReport, EvaluatedEpisodes
    from coc_vla.head.text_head import EpisodeTraces
    from world_modality.evaluation.metrics import HorizonAccuracy
    from world_modality.evaluation.offline_run import OfflineRun


@dataclass(frozen=True, kw_only=True)
class EvalCocConfig(MotionFlags, OfflineConfig):
    """Measure action error, world accuracy and explanations on held-out episodes, with controls."""

    labels_jsonl: Path
    """File of `python -m coc_vla.coc_generation`; the labels of held-out episodes are used."""
    control: Path | None = None
    """Checkpoint of `coc_vla.train --text_context lang`, the instruction-only control."""
    dataset_root: Path | None = None
    """Folder of the recording; with it, written events are scored against the recorded ones.
    Without it, they are scored against those that the labels claim."""
    convert: bool = False
    """Read a dataset of format v2.1 from `<folder>_v3` beside it, which LeRobot's converter writes
    where it is not there yet; the dataset itself stays as it is."""
    num_episodes: int = 200
    """Explain at most this many held-out episodes, drawn with the seed."""
    temperature: float = 1.0
    """Temperature of the sampled explanations; the others are greedy."""

    def __post_init__(self) -> None:
        require_at_least("num_episodes", self.num_episodes, 1)
        if self.temperature <= 0:
            raise InvalidInputError(f"--temperature must be above 0, not {self.temperature}")


@dataclass(frozen=True)
class EvalCocResult:
    """The report; actions and world are those of `eval_offline`.

    Attributes:
        run: what was evaluated.
        labels: which labels, and how many held-out episodes have one.
        truth: `recorder` or `labels`: what written events are compared with.
        eval_shares: the frames that episodes are explained from, as shares of their length.
        conditions: by name; `model` is the checkpoint as it is.
        examples: a few episodes with label and explanations.
    """

    run: dict[str, Any]
    labels: dict[str, Any]
    truth: str
    eval_shares: tuple[float, ...]
    actions: dict[str, dict[str, Any]]
    world: "dict[str, list[HorizonAccuracy]] | None"
    conditions: "dict[str, ConditionReport]"
    examples: list[dict[str, Any]]


def run(config: EvalCocConfig) -> EvalCocResult:
    """Evaluate, print, and write JSON, Markdown and picture.

    Raises:
        MissingFileError, InvalidInputError: checkpoint, control, cache, labels or recording are
            missing, damaged, or do not belong together.
    """
    from world_modality.evaluation.offline_run import OfflineRun

    opened = OfflineRun.open(config)
    with config.report_lock("eval_coc"):
        result = _evaluated(config, opened)
        _write(config, result)
    return result


def _evaluated(config: EvalCocConfig, opened: "OfflineRun") -> EvalCocResult:
    from coc_vla.head.evaluation import Condition, evaluate_conditions
    from coc_vla.head.text_head import EVAL_SHARES, Explainer, read_traces
    from world_modality.evaluation.metrics import action_metrics, trivial_errors, world_metrics
    from world_modality.policy.predictions import predict

    explainer = Explainer.of(opened.checkpoint, opened.tensors.device)
    traces = read_traces(config.labels_jsonl, opened.cache, opened.tensors.episodes)
    episodes = _episodes(config, opened, traces)
    truth, known = _truth(config, opened, episodes)
    conditions = _conditions(config, Condition(opened, explainer, episodes))
    reports = evaluate_conditions(conditions, truth, event_groups(known), config.seed)
    errors = predict(opened.policy, opened.tensors, opened.val_frames, progress="actions")
    predictors = {"model": errors, **trivial_errors(opened)}
    return EvalCocResult(
        run=opened.describe(),
        labels={
            "path": str(config.labels_jsonl),
            "num_val_labels": len(traces.among(opened.val_ids)),
            "num_explained": len(episodes.ids),
            "num_errors": traces.num_errors,
            "is_training_file": sha256_of_file(config.labels_jsonl)
            == explainer.record.labels_sha256,
        },
        truth="labels" if config.dataset_root is None else "recorder",
        eval_shares=EVAL_SHARES,
        actions={
            name: action_metrics(opened, predicted, config.seed)
            for name, predicted in predictors.items()
        },
        world=None if errors.token_rank is None else world_metrics(opened, errors, config.seed),
        conditions=reports,
        examples=_examples(episodes, reports),
    )


def _episodes(
    config: EvalCocConfig, opened: "OfflineRun", traces: "EpisodeTraces"
) -> "EvaluatedEpisodes":
    from coc_vla.head.evaluation import EvaluatedEpisodes

    held_out = traces.among(opened.val_ids)
    if not held_out:
        raise InvalidInputError(
            f"{traces.path} has no label of a held-out episode; label more of {opened.val_ids[:5]}"
        )
    ids = sorted(held_out)
    chosen = np.random.default_rng(config.seed).permutation(ids)[: config.num_episodes]
    kept = {i: held_out[i] for i in sorted(chosen.tolist())}
    return EvaluatedEpisodes.of(opened, kept, traces.instructions)


def _truth(
    config: EvalCocConfig, opened: "OfflineRun", episodes: "EvaluatedEpisodes"
) -> tuple[list[list[EventType]], tuple[EventType, ...]]:
    if config.dataset_root is None:
        pairs = zip(episodes.traces, episodes.instructions, strict=True)
        return [claimed_events(trace, told) for trace, told in pairs], EVENT_TYPES
    source = open_dataset(
        config.dataset_name, dataset_root=config.dataset_root, convert_older=config.convert
    )
    recorded = recorded_events(source, config, opened.cache.episode_key)
    strangers = [i for i in episodes.ids.tolist() if i not in recorded.by_episode]
    if strangers:
        raise InvalidInputError(
            f"{config.dataset_root} lacks episodes {strangers[:5]}: another recording than the "
            "cache was made from?"
        )
    return [recorded.kinds(i) for i in episodes.ids.tolist()], recorded.known


def _conditions(config: EvalCocConfig, model: "Condition") -> "dict[str, Condition]":
    from coc_vla.head.evaluation import MODEL

    opened = model.run
    greedy = {MODEL: model}
    if config.control is not None:
        greedy["instruction only"] = _control(config, config.control, model)
    conditions = {}
    for name, condition in greedy.items():
        conditions[name] = condition
        conditions[f"{name}, sampled"] = dataclasses.replace(
            condition, temperature=config.temperature
        )
    rng = np.random.default_rng([config.seed, 1])
    if opened.policy.config.reads_world:
        for name in ("task_shuffle", "uniform"):
            corruption = read_corruption(name, "condition")
            recorded = opened.recorded_tokens
            replaced = recorded.read_at(np.arange(len(recorded.tokens)))
            replaced[opened.val_frames] = corruption.offline_tokens(recorded, rng)
            conditions[f"world token: {corruption.meaning}"] = dataclasses.replace(
                model, world_tokens=replaced
            )
    conditions["all input of another episode of the task"] = dataclasses.replace(
        model, frames=model.episodes.frames_of_partners(rng)
    )
    return conditions


def _control(config: EvalCocConfig, path: Path, model: "Condition") -> "Condition":
    from coc_vla.head.evaluation import Condition
    from coc_vla.head.text_head import Explainer
    from world_modality.evaluation.offline_run import OfflineRun

    opened = OfflineRun.open(dataclasses.replace(config, checkpoint=path))
    control = Explainer.of(opened.checkpoint, opened.tensors.device)
    if control.record.context != "lang":
        raise InvalidInputError(
            f"--control {path} reads more than the instruction; train one with python -m "
            "coc_vla.train --text_context lang and otherwise the flags of --checkpoint"
        )
    for name in ("tokenizer", "labels_sha256"):
        if getattr(control.record, name) != getattr(model.explainer.record, name):
            raise InvalidInputError(
                f"--control {path} was trained with another {name.split('_')[0]} than "
                f"{config.checkpoint}, so that their perplexities per token are not comparable"
            )
    return Condition(opened, control, model.episodes)


def _examples(
    episodes: "EvaluatedEpisodes", conditions: "dict[str, ConditionReport]"
) -> list[dict[str, Any]]:
    """Return the first episode of each task, explained from its middle frame."""
    from coc_vla.head.text_head import EVAL_SHARES

    middle = len(EVAL_SHARES) // 2 * len(episodes.ids)
    first = sorted(np.unique(episodes.tasks, return_index=True)[1].tolist())
    return [
        {
            "episode_index": int(episodes.ids[i]),
            "instruction": episodes.instructions[i],
            "label": [dataclasses.asdict(step) for step in episodes.traces[i]],
            **{
                name: [dataclasses.asdict(step) for step in conditions[name].written[middle + i]]
                for name in ("model", "instruction only")
                if name in conditions
            },
        }
        for i in first
    ]


def _write(config: EvalCocConfig, result: EvalCocResult) -> None:
    out_dir = config.report_dir("eval_coc")
    report = dataclasses.asdict(result)
    for condition in report["conditions"].values():
        del condition["written"]  # thousands of texts; the examples show what they look like
    write_config(config, out_dir / "config.json")
    write_json(out_dir / "eval_coc.json", report)
    text = markdown_report(report)
    with replacing(out_dir / "eval_coc.md") as partial:
        partial.write_text(text, encoding="utf-8")
    plot_explanations(report, out_dir / "eval_coc.png")
    print(text)
    print(f"report: {out_dir / 'eval_coc.md'} and .json\nplot: {out_dir / 'eval_coc.png'}")


def main() -> None:
    """Run the stage from the command line."""
    run_cli(EvalCocConfig, run)


if __name__ == "__main__":
    main()
