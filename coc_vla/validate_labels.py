"""Report what a file of labels holds, and show it beside the pictures for a person to judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from coc_vla.authors.vlm import image_url
from coc_vla.labels.keyframes import keyframe_images
from coc_vla.labels.record import CocLabel, LabelScan, scan_labels
from coc_vla.labels.settings import require_episode_key
from coc_vla.labels.statistics import label_report
from world_modality.source.dataset_episodes import read_episodes
from world_modality.source.episodes import Episodes
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.atomic import replacing, write_json
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError, require_at_least

_SHEET = Path(__file__).with_name("contact_sheet.html.j2")


@dataclass(frozen=True)
class ValidateLabelsConfig:
    """Count, check and show the labels of a file; a run may be writing it meanwhile."""

    labels_jsonl: Path
    """Files that coc_generation wrote; several are read one after the other."""
    dataset_name: str | None = None
    """LeRobot repository id of the labelled dataset, for coverage and pictures; without it only the
    labels are checked."""
    dataset_root: Path | None = None
    """Folder of a local dataset; without it HF_LEROBOT_HOME is searched, then the hub."""
    revision: str | None = None
    """Hub revision of the dataset."""
    convert: bool = False
    """Read a dataset of format v2.1 from `<folder>_v3` beside it, which LeRobot's converter writes
    where it is not there yet; the dataset itself stays as it is."""
    image_key: str | None = None
    """Camera of the contact sheet; may be left out where there is only one."""
    episode_id_key: str = "episode_index"
    """Column that numbers the episodes."""
    num_samples: int = 5
    """How many labels are printed for reading."""
    contact_sheet: Path | None = None
    """HTML file that receives keyframes and steps side by side."""
    sheet_episodes: int = 24
    """Episodes on the contact sheet; those with errors come first, and fill at most a quarter of
    it."""
    sheet_image_side: int = 256
    """Longest side of a keyframe on the contact sheet, in pixels; larger ones are made smaller."""
    output_json: Path | None = None
    """File that receives the report; by default <name>.report.json beside the labels."""
    seed: int = 0
    """Seed of the choice of samples."""


def run(config: ValidateLabelsConfig) -> dict[str, Any]:
    """Print and write the report."""
    if config.contact_sheet is not None and config.dataset_name is None:
        raise InvalidInputError("--contact_sheet needs the pictures of --dataset_name")
    require_at_least("num_samples", config.num_samples, 0)
    require_at_least("sheet_episodes", config.sheet_episodes, 1)
    require_at_least("sheet_image_side", config.sheet_image_side, 1)
    scan = scan_labels(config.labels_jsonl)
    source = episodes = None
    if config.dataset_name is not None:
        source = open_dataset(
            config.dataset_name,
            dataset_root=config.dataset_root,
            revision=config.revision,
            convert_older=config.convert,
        )
        require_episode_key(config.labels_jsonl, config.episode_id_key)
        episodes = read_episodes(source, config.episode_id_key)
    report = label_report(scan, None if episodes is None else episodes.ids.tolist())
    report_path = config.output_json or config.labels_jsonl.with_suffix(".report.json")
    write_json(report_path, report)
    _print(report, config.labels_jsonl)
    labels = [record for record in scan.records.values() if record.is_label]
    for label in _drawn(labels, config.num_samples, config.seed):
        print(f"\nepisode {label.episode_id}: {label.instruction}\n{label.text}")
    print(f"\nreport {report_path}")
    if config.contact_sheet is not None and source is not None and episodes is not None:
        _write_sheet(config, config.contact_sheet, scan, source, episodes)
    return report


def _print(report: dict[str, Any], path: Path) -> None:
    """Print what a reader needs to decide whether the labels are usable."""
    lines, coverage = report["lines"], report["coverage"]
    share = "" if coverage["share"] is None else f", {coverage['share']:.1%} of the dataset"
    print(f"\nlabels {path}")
    print(f"  labels            {coverage['num_labels']}{share}")
    print(f"  errors            {coverage['num_errors']}")
    for kind, entry in report["errors"].items():
        print(f"    {entry['count']} × {kind} (episode {entry['episode']})")
    if count := coverage["num_without_line"]:
        print(f"  no line           {count} episodes, the first {coverage['without_line'][:5]}")
    if coverage["not_in_dataset"]:
        print(f"  not in dataset    {coverage['not_in_dataset']}")
    print(
        f"  lines             {lines['num_lines']}: {lines['num_superseded']} superseded, "
        f"{lines['num_damaged']} damaged"
    )
    for line in lines["damaged"][:5]:
        print(f"    line {line['line']} {line['reason']}")
    invalid, same = report["invalid"], report["duplicates"]
    print(f"  invalid           {invalid['num_labels']} labels fail the checks of today")
    for episode, faults in list(invalid["episodes"].items())[:5]:
        print(f"    episode {episode}: {'; '.join(faults)}")
    print(
        f"  duplicates        {same['num_labels_with_shared_text']} labels share their text with "
        f"another; {same['num_distinct_texts']} distinct texts; episodes with several labels: "
        f"{same['episodes_with_several_labels'] or 'none'}"
    )
    for origin in report["origins"]:
        prompt = (origin["prompt_sha256"] or "none")[:12]
        print(
            f"  made by           {origin['model_name']} through {origin['backend']}, prompt "
            f"{prompt}: {origin['num_labels']}"
        )
    if len(report["origins"]) > 1:
        print("  note: the labels are a mixture of several origins")
    for name, values in report["lengths"].items():
        if name != "num_labels_by_steps" and values is not None:
            print(
                f"  {name:<17} median {values['median']:.3g}, {values['p5']:.3g} to "
                f"{values['p95']:.3g} (5 to 95 %), at most {values['max']:.3g}"
            )
    words = report["words"]
    print(f"  words             {words['num_words']}, {words['num_distinct']} distinct")
    print(f"    most frequent   {', '.join(list(words['most_frequent'])[:12])}")
    print(f"    steps begin     {', '.join(list(words['first_words_of_steps'])[:12])}")


def _drawn(records: Sequence[CocLabel], count: int, seed: int) -> list[CocLabel]:
    """Draw some records, in the order of their episodes."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(records))[:count]
    return sorted((records[int(i)] for i in chosen), key=lambda record: record.episode_id)


def _write_sheet(
    config: ValidateLabelsConfig,
    path: Path,
    scan: LabelScan,
    source: LeRobotSource,
    episodes: Episodes,
) -> None:
    """Write keyframes and steps side by side, as one HTML file that needs nothing beside it."""
    camera = source.camera(config.image_key)
    position_of = {episode: position for position, episode in enumerate(episodes.ids.tolist())}
    starts, lengths = episodes.starts.tolist(), episodes.lengths.tolist()
    records = [
        record
        for episode, record in scan.records.items()
        if episode in position_of and max(record.keyframe_indices) < lengths[position_of[episode]]
    ]
    errors = [record for record in records if not record.is_label]
    labels = [record for record in records if record.is_label]
    shown = _drawn(errors, max(config.sheet_episodes // 4, 1), config.seed)
    shown += _drawn(labels, config.sheet_episodes - len(shown), config.seed)
    in_order = sorted(shown, key=lambda record: position_of[record.episode_id])
    frames = [
        [starts[position_of[record.episode_id]] + index for index in record.keyframe_indices]
        for record in in_order
    ]
    decoded = keyframe_images(source, camera, frames, config.sheet_image_side)
    images = {record.episode_id: found for record, found in zip(in_order, decoded, strict=True)}
    left_out = len(scan.records) - len(records)
    note = (
        f"{len(shown)} of {len(scan.records)} episodes, {camera}; errors first. Does each step "
        "happen, in this order, and does its reason hold?"
    )
    if left_out:
        note += f" {left_out} whose frames the dataset does not have are left out."
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(_SHEET.read_text(encoding="utf-8")).render(
        title=f"Chain-of-Causality labels of {source.name}",
        note=note,
        entries=[(record, images[record.episode_id]) for record in shown],
        fps=source.fps,
        image_url=image_url,
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
    print(f"contact sheet {path}")


def main() -> None:
    """Run the stage from the command line."""
    run_cli(ValidateLabelsConfig, run)


if __name__ == "__main__":
    main()
