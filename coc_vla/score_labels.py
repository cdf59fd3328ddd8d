"""Score labels against what the recorder knows: precision and recall of the events they claim."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coc_vla.events.claims import claimed_events
from coc_vla.events.motion_columns import MotionFlags
from coc_vla.events.recorded import EVENT_TYPES, RecordedEvents, recorded_events
from coc_vla.head.scores import GroupScore, event_groups, score_group
from coc_vla.labels.record import CocLabel, read_records
from coc_vla.labels.settings import require_episode_key
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError, require_at_least

if TYPE_CHECKING:
    from coc_vla.head.judge import JudgeResult


@dataclass(frozen=True)
class ScoreConfig(MotionFlags):
    """Score the events that labels claim against recorded ones, with other episodes as controls."""

    labels_jsonl: Path
    """File of labels that `python -m coc_vla.coc_generation` wrote."""
    dataset_name: str
    """LeRobot repository id of the labelled recording."""
    dataset_root: Path | None = None
    """Folder of the recording; without it HF_LEROBOT_HOME is searched, then the hub."""
    convert: bool = False
    """Read a dataset of format v2.1 from `<folder>_v3` beside it, which LeRobot's converter writes
    where it is not there yet; the dataset itself stays as it is."""
    episode_id_key: str = "episode_index"
    """Column that numbers the episodes, as for coc_generation."""
    out_dir: Path | None = None
    """Folder that receives score_labels.json; by default one beside the labels."""
    num_shuffles: int = 20
    """How often each control is drawn."""
    seed: int = 0
    """Seed of the controls and the bootstrap."""
    judge_base_url: str | None = None
    """Address of an OpenAI-compatible server whose model judges each label; none by default."""
    judge_model: str | None = None
    """Name of the judging model."""
    judge_episodes: int = 50
    """Judge at most this many labels, drawn with the seed."""
    judge_max_tokens: int = 2048
    """Largest number of tokens of the judge's answer, its thoughts included."""

    def __post_init__(self) -> None:
        for name in ("num_shuffles", "judge_episodes", "judge_max_tokens"):
            require_at_least(name, getattr(self, name), 1)
        if (self.judge_base_url is None) != (self.judge_model is None):
            raise InvalidInputError("a judge needs both --judge_base_url and --judge_model")

    @property
    def report_dir(self) -> Path:
        """Where the report goes."""
        return self.out_dir or self.labels_jsonl.with_suffix(".scores")


@dataclass(frozen=True)
class ScoreResult:
    """The report: what was scored, scores by group, and the judge's answers where one was asked."""

    labels_jsonl: str
    num_labels: int
    num_errors: int
    unknown_events: list[str]
    groups: dict[str, GroupScore]
    judge: "JudgeResult | None"


def run(config: ScoreConfig) -> ScoreResult:
    """Score, print, and write the report.

    Raises:
        MissingFileError, InvalidInputError: labels or dataset are missing, damaged, or do not
            belong together.
    """
    require_episode_key(config.labels_jsonl, config.episode_id_key)
    source = open_dataset(
        config.dataset_name, dataset_root=config.dataset_root, convert_older=config.convert
    )
    records = read_records(config.labels_jsonl)
    labels = [record for record in records if record.is_label]
    recorded = recorded_events(source, config, config.episode_id_key)
    if not labels:
        raise InvalidInputError(f"{config.labels_jsonl} has no label, nothing but errors")
    strangers = [n.episode_id for n in labels if n.episode_id not in recorded.by_episode]
    if strangers:
        raise InvalidInputError(
            f"{config.labels_jsonl} labels episodes {strangers[:5]}, which {source.name} in "
            f"{source.root} does not have ({len(recorded.by_episode)} episodes); give the "
            "recording that was labelled"
        )
    compared = (
        [claimed_events(label.coc_text, label.instruction) for label in labels],
        [recorded.kinds(label.episode_id) for label in labels],
        np.unique([label.instruction for label in labels], return_inverse=True)[1],
    )
    result = ScoreResult(
        labels_jsonl=str(config.labels_jsonl),
        num_labels=len(labels),
        num_errors=len(records) - len(labels),
        unknown_events=[kind for kind in EVENT_TYPES if kind not in recorded.known],
        groups={
            name: score_group(*compared, kinds, config.num_shuffles, config.seed)
            for name, kinds in event_groups(recorded.known).items()
        },
        judge=_judge(config, labels, recorded),
    )
    _print(result)
    write_config(config, config.report_dir / "config.json")
    write_json(config.report_dir / "score_labels.json", dataclasses.asdict(result))
    print(f"report: {config.report_dir / 'score_labels.json'}")
    return result


def _judge(
    config: ScoreConfig, labels: Sequence[CocLabel], recorded: RecordedEvents
) -> "JudgeResult | None":
    if config.judge_base_url is None or config.judge_model is None:
        return None
    from coc_vla.head.judge import judge_labels

    order = np.random.default_rng(config.seed).permutation(len(labels))[: config.judge_episodes]
    chosen = [labels[i] for i in sorted(order.tolist())]
    return judge_labels(
        config.judge_base_url,
        config.judge_model,
        [(label, recorded.kinds(label.episode_id)) for label in chosen],
        config.judge_max_tokens,
        config.seed,
    )


def _print(result: ScoreResult) -> None:
    print(
        f"{result.labels_jsonl}: {result.num_labels} labels ({result.num_errors} episodes with an "
        "error instead)\n\nevents, in percent [95 % interval over episodes]; order counts in the "
        "first groups"
    )
    columns = ("precision", "recall", "recall, another episode of the task", "gain")
    print(f"  {'events':16}{'recorded':>9}" + "".join(f"{c:>37}" for c in columns))
    for name, group in result.groups.items():
        cells = (
            group.labels.precision,
            group.labels.recall,
            group.within_task.recall,
            group.recall_gain_within_task,
        )
        shown = "".join(f"{cell.percent:>37}" for cell in cells)
        print(f"  {name:16}{group.labels.num_recorded:>9.0f}{shown}")
    every = result.groups["all"]
    print(
        f"\n  all events: F1 {every.labels.f1.percent}; traces of other tasks: F1 "
        f"{every.across_tasks.f1.percent}"
    )
    if result.unknown_events:
        print(f"  not recorded, so not scored: {', '.join(result.unknown_events)}")
    if result.judge is not None:
        for question, answer in result.judge.shares.items():
            print(f"  judge {result.judge.model_name}, {question}: {answer.percent}")
        print(f"  judge: {result.judge.num_unclear} answers were neither true nor false")


def main() -> None:
    """Run the stage from the command line."""
    run_cli(ScoreConfig, run)


if __name__ == "__main__":
    main()
