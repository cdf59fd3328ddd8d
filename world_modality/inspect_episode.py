"""Record what a policy makes of an episode, for rerun's viewer: images, world token, attention."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from world_modality.evaluation.offline_config import OfflineConfig
from world_modality.system.cli import run_cli, write_config
from world_modality.system.output_lock import OutputLock

if TYPE_CHECKING:
    from world_modality.evaluation.episode_trace import EpisodeTrace
    from world_modality.evaluation.offline_run import OfflineRun

_REPORT = "inspect_episode"
_DECODE_BATCH = 64


@dataclass(frozen=True)
class InspectEpisodeConfig:
    """Write an episode with its images and what a policy makes of each frame as a .rrd file."""

    checkpoint: Path
    """Checkpoint `model_<TYPE>_epoch<n>.pt` that the trainer wrote."""
    dataset_name: str
    """LeRobot repository id; the cache is read from `<cache_dir>/<dataset_name>`."""
    dataset_root: Path | None = None
    """Folder of a local dataset; without it HF_LEROBOT_HOME is searched, then the hub."""
    revision: str | None = None
    """Hub revision of the dataset."""
    cache_dir: Path = Path("cache")
    """Folder of all caches."""
    split: str = "train"
    """Prefix of the cache's files."""
    episode: int | None = None
    """The `episode_index` to show. Default: the first held-out episode."""
    horizon: int = 1
    """Which of the K predicted world tokens to show, counted from 1."""
    out_dir: Path | None = None
    """Folder that receives episode_<n>.rrd; by default one beside the checkpoint."""
    device: str = "auto"
    """Where to compute: auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …"""

    @property
    def offline(self) -> OfflineConfig:
        """The flags of the run that is traced."""
        return OfflineConfig(
            checkpoint=self.checkpoint,
            dataset_name=self.dataset_name,
            cache_dir=self.cache_dir,
            split=self.split,
            out_dir=self.out_dir,
            device=self.device,
        )


@dataclass(frozen=True)
class InspectedEpisode:
    """What was written.

    Attributes:
        path: the recording.
        trace: what it shows.
    """

    path: Path
    trace: "EpisodeTrace"


def run(config: InspectEpisodeConfig) -> InspectedEpisode:
    """Run the policy along the episode and write the recording.

    Raises:
        UserError: checkpoint, cache, dataset or episode are missing or do not belong together; or
            rerun is not installed.
    """
    from world_modality.evaluation.episode_trace import trace_episode
    from world_modality.evaluation.offline_run import OfflineRun
    from world_modality.evaluation.rerun_file import write_recording
    from world_modality.precompute.cached_dataset import open_cached_dataset
    from world_modality.source.frame_decoding import frame_blocks

    offline = OfflineRun.open(config.offline)
    trace = trace_episode(offline, config.episode, config.horizon)
    cache = offline.cache
    source = open_cached_dataset(cache, config.dataset_root, config.revision)
    dataset, num_actions = cache.manifest["dataset"], trace.recorded_actions.shape[1]
    names = source.dim_names(str(dataset["action_key"]), num_actions)
    out_dir = config.offline.report_dir(_REPORT)
    path = out_dir / f"episode_{trace.episode_index}.rrd"
    with OutputLock(out_dir, "--out_dir"):
        write_recording(
            path,
            trace,
            {
                key: frame_blocks(source, key, trace.frames, _DECODE_BATCH)
                for key in cache.image_keys
            },
            fps=float(dataset["fps"]),
            action_names=names or [f"dimension_{i}" for i in range(num_actions)],
            about=_about(offline, trace),
        )
        write_config(config, out_dir / "config.json")
    print(f"{len(trace.frames)} frames of episode {trace.episode_index} are in {path}")
    print(f"look at them: rerun {path}")
    return InspectedEpisode(path, trace)


def _about(run: "OfflineRun", trace: "EpisodeTrace") -> str:
    """Return what the recording is of, as Markdown."""
    dataset, config = run.cache.manifest["dataset"], run.policy.config
    row = run.tensors.episodes.positions_of([trace.episode_index])
    task = dataset["tasks"][str(int(run.tensors.episodes.tasks[row][0]))]
    kept = "held out" if trace.is_held_out else "trained on"
    lines = [
        f"Arm {config.model_type}, `{run.path}`",
        f"{run.cache.dataset_name}, episode {trace.episode_index} ({kept}): {task}",
        "Actions: recorded, and predicted for the same frame in the dataset's units.",
    ]
    if trace.prediction is not None:
        lines.append(
            f"Predictions: of the world token {trace.prediction.frames_ahead} frames later, shown "
            "at the frame that they are made in; `recorded` is the one that came."
        )
    if config.reads_world:
        lines.append(
            "Attention: of the action queries, averaged over queries and heads, summed over the "
            "world tokens that are read."
        )
    return "\n\n".join(lines)


def main() -> None:
    """Run the stage from the command line."""
    run_cli(InspectEpisodeConfig, run)


if __name__ == "__main__":
    main()
