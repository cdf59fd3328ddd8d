"""Explain recorded episodes: one checked chain of causes each, or an error to try again."""

from collections.abc import Iterator

from coc_vla.authors.backends import build_vlm
from coc_vla.authors.prompt import Prompt
from coc_vla.authors.vlm import Vlm
from coc_vla.labels.episode_tasks import TaskPlan, plan_tasks
from coc_vla.labels.file import LabelFile
from coc_vla.labels.generation_config import CocGenerationConfig, check_config
from coc_vla.labels.generation_summary import GenerationSummary, print_summary
from coc_vla.labels.labelling import Labeller
from coc_vla.labels.record import CocLabel, LabelScan
from coc_vla.labels.settings import (
    config_path,
    settings_changes,
    settings_path,
    summary_path,
    write_settings,
)
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError


def run(config: CocGenerationConfig) -> GenerationSummary:
    """Label the episodes that have no label yet."""
    check_config(config)
    request = config.backend_request
    is_model = config.backend != "rules"
    prompt = Prompt.read(config.prompt_file) if is_model else None
    source = open_dataset(
        config.dataset_name,
        dataset_root=config.dataset_root,
        revision=config.revision,
        image_key=config.image_key,
        needs_images=is_model,
    )
    plan = plan_tasks(source, config.task_request, needs_images=is_model, needs_motion=not is_model)
    with LabelFile(config.output_jsonl) as file:
        _require_choice(config, file)
        vlm = build_vlm(request)
        try:
            settings = {
                **plan.settings,
                **request.settings,
                "model_name": vlm.model_name,
                "model_identity": request.identity(),
                "prompt_sha256": None if prompt is None else prompt.sha256,
                "seed": config.seed,
                "max_retries": config.max_retries if is_model else None,
            }
            scan = _opened(config, file)
            _settle(config, file, settings, scan)
            labeller = Labeller(
                vlm,
                config.backend,
                prompt,
                config.seed,
                config.max_retries,
                config.max_failures_in_row,
            )
            return _label(config, plan, file, labeller, scan)
        finally:
            vlm.close()


def _require_choice(config: CocGenerationConfig, file: LabelFile) -> None:
    """Neither mix with an earlier run's labels nor throw them away without being told to."""
    if file.has_lines and not (config.resume or config.overwrite):
        raise InvalidInputError(
            f"{file.path} holds labels already; go on with --resume, or throw them away with "
            "--overwrite"
        )


def _opened(config: CocGenerationConfig, file: LabelFile) -> LabelScan:
    """Prepare the file for writing, and say what it holds."""
    if config.overwrite:
        file.empty()
    scan = file.repair()
    if scan.damaged:
        first = scan.damaged[0]
        print(
            f"{file.path}: took out {len(scan.damaged)} damaged lines; line {first.number} "
            f"{first.reason}"
        )
    return scan


def _settle(
    config: CocGenerationConfig, file: LabelFile, settings: dict[str, object], scan: LabelScan
) -> None:
    """Record what the labels are made with; notice a change against those that are there."""
    changes = settings_changes(file.path, settings) if scan.records else []
    if changes and not config.allow_changed_settings:
        raise InvalidInputError(
            f"{file.path} was made with other settings ({settings_path(file.path)}): "
            f"{'; '.join(changes)}. Give the same ones, another --output_jsonl, --overwrite, or "
            "--allow_changed_settings to mix them"
        )
    write_settings(file.path, settings, keep_earlier=bool(scan.records))
    write_config(config, config_path(file.path))


def _label(
    config: CocGenerationConfig,
    plan: TaskPlan,
    file: LabelFile,
    labeller: Labeller,
    scan: LabelScan,
) -> GenerationSummary:
    from tqdm import tqdm

    todo = plan.without(scan.labelled)
    summary = GenerationSummary(
        num_episodes=len(plan),
        num_kept=len(plan) - len(todo),
        instruction_origin=plan.instruction_origin,
        output_jsonl=str(file.path),
    )
    try:
        with tqdm(total=len(todo), unit="episode", disable=len(todo) == 0) as bar:
            for labels in _finished(config, todo, labeller):
                file.append(labels)
                for label in labels:
                    summary.count(label)
                bar.set_postfix(errors=summary.num_errors, refresh=False)
                bar.update(len(labels))
    finally:
        summary.end(_request_retries(labeller.vlm))
        write_json(summary_path(file.path), summary.content())
        print_summary(summary)
    if summary.num_errors and not (summary.num_labels or summary.num_kept):
        raise InvalidInputError(
            f"none of {summary.num_errors} episodes got a label; the commonest reason: "
            f"{summary.reasons()[0][0]}. {file.path} holds every raw answer"
        )
    return summary


def _finished(
    config: CocGenerationConfig, todo: TaskPlan, labeller: Labeller
) -> Iterator[list[CocLabel]]:
    if config.backend_request.is_concurrent:
        return labeller.concurrently(todo.tasks(), config.concurrency)
    return labeller.in_batches(todo.tasks(), config.batch_size)


def _request_retries(vlm: Vlm) -> int:
    return int(getattr(vlm, "num_request_retries", 0))


def main() -> None:
    """Run the stage from the command line."""
    run_cli(CocGenerationConfig, run)


if __name__ == "__main__":
    main()
