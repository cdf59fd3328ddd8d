"""Say how predictable a cache's world tokens are, what they tell, and what to change.

Reads the cache and nothing else; prints a report and writes `analysis.json`, `analysis.png` and
`config.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from world_modality.cache.contract import Cache, cache_folder
from world_modality.cache.hub_cache import open_cache
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError, require_at_least
from world_modality.system.output_lock import OutputLock
from world_modality.tokens.analysis import Analysis, advice, analyze_cache
from world_modality.tokens.analysis_report import report_json, report_text, save_plot
from world_modality.tokens.slots_report import (
    save_slots_plot,
    slots_advice,
    slots_json,
    slots_text,
)


@dataclass(frozen=True)
class AnalyzeConfig:
    """Analyze the predictability and the content of world tokens."""

    dataset_name: str
    """LeRobot dataset whose cache is read, e.g. HuggingFaceVLA/libero."""
    cache_dir: Path = Path("cache")
    """Folder of all caches."""
    cache_repo: str | None = None
    """The hub's repository that holds the cache instead, user/name or user/name@revision; it is
    fetched, and checked against its manifest."""
    split: str = "train"
    """Split of the LeRobot dataset, the prefix of the cache's files (LeRobot datasets have one)."""
    max_k: int = 8
    """Longest horizon, in frames, that tokens are predicted ahead."""
    slot: int | None = None
    """Where a frame has several world tokens: print and draw everything about this one, counted
    from 0; without it, a row for each."""
    out_dir: Path | None = None
    """Folder of the output; by default `analysis` in the cache's folder, `analysis_slot<i>` for one
    of several slots."""
    max_probe_frames: int = 50_000
    """The linear probe takes at most this many training frames, and as many validation frames."""
    seed: int = 0
    """Seed of subsamples, shuffles and bootstrap intervals."""


@dataclass(frozen=True)
class AnalyzeResult:
    """The figures of each slot, the advice, and where they were written."""

    analyses: list[Analysis]
    advice: list[tuple[str, str]]
    json_path: Path
    plot_path: Path


def run(config: AnalyzeConfig) -> AnalyzeResult:
    """Analyze the cache, print the report, and write JSON and plot.

    Raises:
        MissingFileError: the cache or one of its arrays is not there.
        InvalidInputError: a flag is out of range, or an array is not what the manifest says.
    """
    require_at_least("max_k", config.max_k, 1)
    require_at_least("max_probe_frames", config.max_probe_frames, 1)
    cache = open_cache(config)
    slots = _analyzed_slots(cache, config)  # before the folder is made: a mistyped name makes none
    is_part = len(slots) < cache.num_slots
    out_dir = config.out_dir or cache_folder(config.cache_dir, config.dataset_name) / (
        f"analysis_slot{slots[0]}" if is_part else "analysis"
    )
    with OutputLock(out_dir, "--out_dir"):
        analyses = [
            analyze_cache(cache, config.max_k, config.max_probe_frames, config.seed, slot)
            for slot in slots
        ]
        if len(analyses) == 1:
            sentences = advice(analyses[0])
            text, content = report_text(analyses[0], sentences), report_json(analyses[0], sentences)
        else:
            sentences = slots_advice(analyses)
            text, content = slots_text(analyses, sentences), slots_json(analyses, sentences)
        print(text)
        result = AnalyzeResult(
            analyses, sentences, out_dir / "analysis.json", out_dir / "analysis.png"
        )
        write_config(config, out_dir / "config.json")
        tokens_sha256 = cache.manifest["arrays"]["world_tokens"]["sha256"]
        write_json(result.json_path, {**content, "world_tokens_sha256": tokens_sha256})
        if len(analyses) == 1:
            save_plot(analyses[0], result.plot_path)
        else:
            save_slots_plot(analyses, result.plot_path)
        print(f"\nwrote {result.json_path} and {result.plot_path}")
        return result


def _analyzed_slots(cache: Cache, config: AnalyzeConfig) -> Sequence[int | None]:
    """Return the slots to analyze; None stands for the only token of a frame.

    Raises:
        InvalidInputError: a frame has no such slot.
    """
    num_slots, slot = cache.num_slots, config.slot
    if slot is not None and not 0 <= slot < num_slots:
        raise InvalidInputError(
            f"--slot {slot}: a frame of {config.dataset_name} has {num_slots} world "
            f"token{'s' if num_slots > 1 else ''}, numbered from 0 to {num_slots - 1}"
        )
    if num_slots == 1:
        return [None]
    return range(num_slots) if slot is None else [slot]


def main() -> None:
    """Run the command line."""
    run_cli(AnalyzeConfig, run)


if __name__ == "__main__":
    main()
