"""Say how predictable a cache's world tokens are, what they tell, and what to change.

Reads the cache and nothing else; prints a report and writes `analysis.json`, `analysis.png` and
`config.json`.
"""

from dataclasses import dataclass
from pathlib import Path

from world_modality.cache.contract import Cache
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import require_at_least
from world_modality.system.output_lock import OutputLock
from world_modality.tokens.analysis import Analysis, advice, analyze_cache
from world_modality.tokens.analysis_report import report_json, report_text, save_plot


@dataclass(frozen=True)
class AnalyzeConfig:
    """Analyze the predictability and the content of world tokens."""

    dataset_name: str
    """LeRobot dataset whose cache is read, e.g. HuggingFaceVLA/libero."""
    cache_dir: Path = Path("cache")
    """Folder of all caches."""
    split: str = "train"
    """Split of the LeRobot dataset, the prefix of the cache's files (LeRobot datasets have one)."""
    max_k: int = 8
    """Longest horizon, in frames, over which tokens are predicted."""
    out_dir: Path | None = None
    """Folder of the output; `<cache folder>/analysis` by default."""
    max_probe_frames: int = 50_000
    """The linear probe takes at most this many training frames, and as many validation frames."""
    seed: int = 0
    """Seed of subsamples, shuffles and bootstrap intervals."""


@dataclass(frozen=True)
class AnalyzeResult:
    """The figures, the advice, and where they were written."""

    analysis: Analysis
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
    cache = Cache(config.cache_dir, config.dataset_name, config.split)
    out_dir = config.out_dir or cache.folder / "analysis"
    _ = cache.manifest  # before the folder is made: a mistyped name makes none
    with OutputLock(out_dir, "--out_dir"):
        analysis = analyze_cache(cache, config.max_k, config.max_probe_frames, config.seed)
        sentences = advice(analysis)
        print(report_text(analysis, sentences))

        result = AnalyzeResult(
            analysis, sentences, out_dir / "analysis.json", out_dir / "analysis.png"
        )
        write_config(config, out_dir / "config.json")
        tokens_sha256 = cache.manifest["arrays"]["world_tokens"]["sha256"]
        content = {**report_json(analysis, sentences), "world_tokens_sha256": tokens_sha256}
        write_json(result.json_path, content)
        save_plot(analysis, result.plot_path)
        print(f"\nwrote {result.json_path} and {result.plot_path}")
        return result


def main() -> None:
    """Run the command line."""
    run_cli(AnalyzeConfig, run)


if __name__ == "__main__":
    main()
