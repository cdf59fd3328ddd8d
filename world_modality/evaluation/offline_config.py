"""Flags that the stages share which evaluate a checkpoint on its cache."""

from dataclasses import dataclass
from pathlib import Path

from world_modality.system.output_lock import OutputLock


@dataclass(frozen=True)
class OfflineConfig:
    """Flags of the stages that evaluate a checkpoint on its cache."""

    checkpoint: Path
    """Checkpoint `model_<TYPE>_epoch<n>.pt` that the trainer wrote."""
    dataset_name: str
    """LeRobot repository id; the cache is read from `<cache_dir>/<dataset_name>`."""
    cache_dir: Path = Path("cache")
    """Folder of all caches."""
    cache_repo: str | None = None
    """The hub's repository that holds the cache instead, user/name or user/name@revision; it is
    fetched, and checked against its manifest."""
    split: str = "train"
    """Prefix of the cache's files; the held-out episodes are part of it."""
    out_dir: Path | None = None
    """Folder that receives the report; by default one beside the checkpoint."""
    device: str = "auto"
    """Where to compute: auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …"""
    seed: int = 0
    """Seed of everything that is drawn at random here, the bootstrap included."""

    def report_dir(self, report: str) -> Path:
        """Return the folder for this report."""
        return self.out_dir or self.checkpoint.parent / f"{report}_{self.checkpoint.stem}"

    def report_lock(self, report: str) -> OutputLock:
        """Return the lock of the folder for this report."""
        return OutputLock(self.report_dir(report), "--out_dir")
