"""Explain recorded episodes: one checked chain of causes each, or an error to try again."""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coc_vla.authors.backends import build_vlm
from coc_vla.authors.prompt import DEFAULT_PROMPT_PATH, Prompt
from coc_vla.labels.episode_tasks import EpisodeFlags, TaskPlan, plan_tasks
from coc_vla.labels.labelling import Labeller, LabellingFlags
from coc_vla.labels.record import CocLabel, LabelFile, LabelScan, error_kind
from coc_vla.labels.settings import settings_changes, settings_path, write_settings
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError

NUM_REASONS = 5


@dataclass(frozen=True, kw_only=True)
class CocGenerationConfig(LabellingFlags, EpisodeFlags):
    """Write one line for each episode of a dataset: a chain of causes, or why there is none.

    A line is on the disk before the next episode is finished; a run that is killed goes on with
    --resume.
    """

    dataset_name: str
    """Repository id (HuggingFaceVLA/libero), or the name given to a local dataset."""
    output_jsonl: Path
    """File that receives one JSON line an episode; settings, config and summary are written beside
    it."""
    dataset_root: Path | None = None
    """Folder of a local dataset; otherwise HF_LEROBOT_HOME, then the hub."""
    revision: str | None = None
    """Hub revision (tag, branch or commit) to pin the dataset to."""
    convert: bool = False
    """Read a dataset of format v2.1 from `<folder>_v3` beside it, which LeRobot's converter writes
    where it is not there yet; the dataset itself stays as it is."""
    prompt_file: Path = DEFAULT_PROMPT_PATH
    """File with the question, a line `--- retry ---`, and what is added to it after a refused
    answer."""
    resume: bool = False
    """Continue the file: keep its labels, and try its failed episodes again."""
    overwrite: bool = False
    """Delete an existing file's content and start again."""
    allow_changed_settings: bool = False
    """Let --resume continue with another prompt, model or setting; each line says which settings it
    was made with."""

    def __post_init__(self) -> None:
        LabellingFlags.__post_init__(self)
        EpisodeFlags.__post_init__(self)
        if self.resume and self.overwrite:
            raise InvalidInputError("--resume keeps the file and --overwrite empties it; give one")
        if self.allow_changed_settings and not self.resume:
            raise InvalidInputError("--allow_changed_settings is for --resume")


@dataclass
class GenerationSummary:
    """Counts of one run, and the file of labels and origin of the instructions for its reader."""

    num_episodes: int
    num_kept: int
    instruction_origin: str
    output_jsonl: str
    num_labels: int = 0
    num_errors: int = 0
    num_answers: int = 0
    num_first_answers: int = 0
    num_tokens: int = 0
    num_request_retries: int = 0
    seconds: float = 0.0
    _errors: Counter[str] = field(default_factory=Counter, repr=False)
    _began: float = field(default_factory=time.monotonic, repr=False)

    def count(self, label: CocLabel) -> None:
        """Count a record that was written."""
        self.num_answers += label.attempts
        self.num_tokens += label.tokens or 0
        if label.error is None:
            self.num_labels += 1
            self.num_first_answers += label.attempts == 1
        else:
            self.num_errors += 1
            self._errors[error_kind(label.error)] += 1

    def end(self, num_request_retries: int) -> None:
        """Stop the clock."""
        self.seconds = time.monotonic() - self._began
        self.num_request_retries = num_request_retries

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """The commonest reasons of errors with their counts."""
        return self._errors.most_common(NUM_REASONS)

    def content(self) -> dict[str, Any]:
        """Return what the JSON says."""
        done = self.num_labels + self.num_errors
        return {
            **{name: value for name, value in vars(self).items() if not name.startswith("_")},
            "num_missing": self.num_episodes - self.num_kept - done,
            "episodes_per_s": done / self.seconds if self.seconds > 0 and done else None,
            "reasons": dict(self.reasons),
        }

    def print(self) -> None:
        """Print what was done, what was not, and why."""
        content = self.content()
        lines = [
            f"\nlabels {self.output_jsonl}",
            f"  episodes          {self.num_episodes}, instructions from {self.instruction_origin}",
            f"  kept              {self.num_kept} labels of earlier runs",
            f"  labelled          {self.num_labels}, {self.num_first_answers} of them with the "
            "first answer",
            f"  errors            {self.num_errors}; --resume tries them again",
            *(f"    {count} × {reason}" for reason, count in self.reasons),
        ]
        if content["num_missing"]:
            lines.append(
                f"  not come to       {content['num_missing']}; --resume goes on with them"
            )
        if content["episodes_per_s"] is not None:
            lines.append(
                f"  speed             {content['episodes_per_s']:.3g} episodes/s; "
                f"{self.num_answers} answers, {self.num_tokens} tokens, "
                f"{self.num_request_retries} requests tried again"
            )
        print("\n".join(lines))


def run(config: CocGenerationConfig) -> GenerationSummary:
    """Label the episodes that have no label yet.

    Raises:
        UserError: the flags, the dataset or the file do not fit, the author cannot be used or is
            gone, or no episode got a label.
    """
    prompt = Prompt.read(config.prompt_file) if config.is_model else None
    source = open_dataset(
        config.dataset_name,
        dataset_root=config.dataset_root,
        revision=config.revision,
        image_keys=() if config.image_key is None else (config.image_key,),
        needs_images=config.is_model,
        convert_older=config.convert,
    )
    # A server decodes files itself; decoding and encoding them here is for nothing.
    as_recorded = config.backend == "openai"
    plan = plan_tasks(source, config, needs_images=config.is_model, as_recorded=as_recorded)
    with LabelFile(config.output_jsonl) as file:
        if file.has_lines and not (config.resume or config.overwrite):
            raise InvalidInputError(
                f"{file.path} holds labels already; go on with --resume, or throw them away with "
                "--overwrite"
            )
        vlm = build_vlm(config)
        try:
            settings = {
                **plan.settings,
                **config.author_settings,
                "model_name": vlm.model_name,
                "model_identity": config.model_identity(),
                "prompt_sha256": None if prompt is None else prompt.sha256,
                "seed": config.seed,
                "max_retries": config.max_retries if config.is_model else None,
            }
            labelled = _opened(config, file, settings).labelled
            return _label(plan, labelled, file, Labeller(vlm, prompt, config))
        finally:
            vlm.close()


def _opened(config: CocGenerationConfig, file: LabelFile, settings: dict[str, object]) -> LabelScan:
    """Prepare the file for writing; record what the labels are made with, and notice a change."""
    if config.overwrite:
        file.empty()
    scan = file.repair()
    if scan.damaged:
        first = scan.damaged[0]
        print(
            f"{file.path}: took out {len(scan.damaged)} damaged lines; line {first.number} "
            f"{first.reason}"
        )
    changes = settings_changes(file.path, settings) if scan.records else []
    if changes and not config.allow_changed_settings:
        raise InvalidInputError(
            f"{file.path} was made with other settings ({settings_path(file.path)}): "
            f"{'; '.join(changes)}. Give the same ones, another --output_jsonl, --overwrite, or "
            "--allow_changed_settings to mix them"
        )
    write_settings(file.path, settings, keep_earlier=bool(scan.records))
    write_config(config, file.path.with_suffix(".config.json"))
    return scan


def _label(
    plan: TaskPlan, labelled: set[int], file: LabelFile, labeller: Labeller
) -> GenerationSummary:
    from tqdm import tqdm

    todo = plan.without(labelled)
    summary = GenerationSummary(
        num_episodes=len(plan),
        num_kept=len(plan) - len(todo),
        instruction_origin=str(plan.instructions),
        output_jsonl=str(file.path),
    )
    try:
        with tqdm(total=len(todo), unit="episode", disable=len(todo) == 0) as bar:
            for labels in labeller.records(todo.tasks()):
                file.append(labels)
                for label in labels:
                    summary.count(label)
                bar.set_postfix(errors=summary.num_errors, refresh=False)
                bar.update(len(labels))
    finally:
        summary.end(int(getattr(labeller.vlm, "num_request_retries", 0)))
        write_json(file.path.with_suffix(".summary.json"), summary.content())
        summary.print()
    if summary.num_errors and not (summary.num_labels or summary.num_kept):
        raise InvalidInputError(
            f"none of {summary.num_errors} episodes got a label; the commonest reason: "
            f"{summary.reasons[0][0]}. {file.path} holds every raw answer"
        )
    return summary


def main() -> None:
    """Run the stage from the command line."""
    run_cli(CocGenerationConfig, run)


if __name__ == "__main__":
    main()
