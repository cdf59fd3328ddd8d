"""Folders of runs and rollouts with planted effects, as the stages write them, without training."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SHARED_FLAGS: dict[str, Any] = {
    "dataset_name": "synthetic/demo",
    "cache_dir": "cache",
    "split": "train",
    "use_language": True,
    "context_frames": 1,
    "chunk_size": 8,
    "future_offset": 2,
    "future_stride": 1,
    "world_loss_weight": 0.2,
    "world_input_scale": 1.0,
    "world_input_dropout": 0.0,
    "world_input_layernorm": False,
    "block_world_to_action": False,
    "num_epochs": 2,
    "learning_rate": 1e-3,
    "device": "auto",
    "num_workers": 0,
    "resume": True,
    "overwrite": False,
}
RENDERING = {"camera": "corner2", "image_size": 128, "gl_backend": "egl"}


@dataclass
class World:
    """What all runs share: how hard each episode is, for every arm.

    Attributes:
        num_val: held-out episodes.
        num_rollouts: episodes in closed loop.
        seed: of everything drawn.
    """

    num_val: int = 20
    num_rollouts: int = 30
    seed: int = 0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.num_steps = self.rng.integers(200, 600, self.num_val).astype(float)
        self.difficulty = self.rng.gamma(4, 0.02, self.num_val)
        self.luck = self.rng.random(self.num_rollouts)

    def error_sums(self, effect: float, seed_effect: float, noise: float = 0.01) -> np.ndarray:
        """Return summed squared errors per held-out episode."""
        mean = self.difficulty + effect + seed_effect + noise * self.rng.normal(size=self.num_val)
        return np.maximum(mean, 1e-4) * self.num_steps


def write_run(
    folder: Path,
    world: World,
    model_type: str,
    seed: int,
    sums: np.ndarray,
    *,
    fingerprint: str = "f" * 64,
    data: dict[str, Any] | None = None,
    corrupted: float = 1.0,
    **flags: Any,
) -> Path:
    """Write a finished, evaluated run; return its checkpoint, whose bytes are unique to it."""
    config = {**SHARED_FLAGS, **flags}
    config |= {"log_dir": str(folder), "model_type": model_type, "seed": seed}
    last = config["num_epochs"] - 1
    stem = f"model_{model_type}_epoch{last}"
    write_json(folder / "config.json", config)
    lines = [
        {"kind": "epoch", "epoch": epoch, "global_step": epoch, "val_action_mse": 0.3 / (epoch + 1)}
        | ({} if model_type == "A" else {"val_world_top1": 0.4 + 0.1 * epoch})
        for epoch in range(config["num_epochs"])
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoint = folder / f"{stem}.pt"
    checkpoint.write_bytes(f"{folder} {seed}".encode())
    run = {
        "checkpoint": str(checkpoint),
        "model_type": model_type,
        "dataset_name": config["dataset_name"],
        "cache_fingerprint": fingerprint,
        "encoder": "synthetic-encoder",
        "encoder_note": None,
        "num_val_episodes": world.num_val,
        "num_val_frames": int(world.num_steps.sum()),
        "seed": seed,
        "versions": {"torch": "2.10.0", "numpy": "2.2.0", "python": "3.11.7"},
        "data": {"dataset": "d" * 64, "split": "s" * 64, "rendering": RENDERING, **(data or {})},
    }
    if data and "encoder" in data:
        run["encoder"] = run["data"].pop("encoder")
    write_json(
        folder / f"eval_offline_{stem}" / "eval_offline.json",
        {
            "run": run,
            "actions": {
                name: {"mse": interval(float(sums.sum() / world.num_steps.sum()) + shift)}
                for name, shift in (("model", 0.0), ("task_mean", 0.5), ("last_action", 0.2))
            },
            "episodes": {
                "episode_index": list(range(world.num_val)),
                "squared_error_sum": sums.tolist(),
                "num_steps": world.num_steps.tolist(),
                **({} if model_type == "A" else _token_sums(world)),
            },
            "world": None if model_type == "A" else _world(),
        },
    )
    wrong = sums * (corrupted if model_type == "C" else 1.0)
    ratio = float(wrong.sum() / sums.sum())
    write_json(
        folder / f"corrupt_world_{stem}" / "corrupt_world.json",
        {
            "run": run,
            "clean_mse": interval(0.1),
            "corruptions": {
                name: {
                    "corrupted_mse": 0.1,
                    "ratio": interval(ratio),
                    "ratio_per_draw": [ratio],
                    "changed_tokens": 0.9,
                }
                for name in ("stale:8", "task_shuffle", "uniform")
            },
            "episodes": {
                "clean": sums.tolist(),
                **{name: wrong.tolist() for name in ("stale:8", "task_shuffle", "uniform")},
            },
        },
    )
    return checkpoint


def write_rollouts(
    folder: Path,
    world: World,
    checkpoints: list[Path],
    success_rates: list[float],
    *,
    corruption: str = "none",
    gl_backend: str = "egl",
    seed_noise: float = 0.1,
) -> Path:
    """Write `results.jsonl`: an episode is solved where its luck is below the arm's rate."""
    lines = []
    for checkpoint, rate in zip(checkpoints, success_rates, strict=True):
        luck = world.luck + seed_noise * world.rng.normal(size=world.num_rollouts)
        for episode in range(world.num_rollouts):
            lines.append(
                {
                    "checkpoint": str(checkpoint),
                    "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
                    "model_type": "C",
                    "policy": {"n_action_steps": 8, "corrupt_world": corruption, "device": "cpu"},
                    "suite": "metaworld",
                    "versions": {"metaworld": "3.1.1", "mujoco": "3.3.0"},
                    "gl_backend": gl_backend,
                    "rendering": {**RENDERING, "gl_backend": gl_backend},
                    "world_corruption": corruption,
                    "task": f"task-{episode % 2}",
                    "instruction": f"do task {episode % 2}",
                    "episode": episode,
                    "initial_state": 1000 + episode,
                    "seed": 0,
                    "max_steps": 500,
                    "success": bool(luck[episode] < rate),
                    "num_steps": 60,
                    "seconds": 0.1,
                    "error": None,
                }
            )
    path = folder / "results.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_matrix(
    root: Path,
    world: World,
    effects: dict[str, float],
    num_seeds: int = 3,
    success: dict[str, float] | None = None,
) -> dict[str, list[Path]]:
    """Write every arm with every seed, and their rollouts; return the checkpoints by arm."""
    checkpoints: dict[str, list[Path]] = {arm: [] for arm in effects}
    for seed in range(num_seeds):
        shared = 0.003 * world.rng.normal()
        for arm, effect in effects.items():
            sums = world.error_sums(effect, shared + 0.003 * world.rng.normal())
            folder = root / f"{arm.lower()}_{seed}"
            checkpoints[arm].append(write_run(folder, world, arm, seed, sums, corrupted=1.5))
    if success is not None:
        for seed in range(num_seeds):
            paths = [checkpoints[arm][seed] for arm in success]
            write_rollouts(root / f"rollouts_{seed}", world, paths, list(success.values()))
    return checkpoints


def interval(value: float) -> dict[str, Any]:
    """Return what `dataclasses.asdict` makes of an Interval."""
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "num_episodes": 20}


def write_json(path: Path, content: Any) -> None:
    """Write a file and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _token_sums(world: World) -> dict[str, list[list[float]]]:
    frames = np.full(world.num_val, 50.0)
    sums = {
        "top1_hits_all": 0.8 * frames,
        "top1_frames_all": frames,
        "top1_hits_changed": 0.1 * frames,
        "top1_frames_changed": 0.2 * frames,
    }
    num_horizons = SHARED_FLAGS["future_offset"]
    return {name: [values.tolist()] * num_horizons for name, values in sums.items()}


def _world() -> dict[str, Any]:
    names = ("model_top1", "model_top5", "copy_top1", "bigram_top1", "bigram_top5")
    accuracy = {name: interval(0.8) for name in (*names, "change_bigram_top1")}
    return {
        subset: [
            {
                "horizon": k,
                "frames_ahead": k,
                "num_frames": 100,
                "accuracy": accuracy,
                "model_minus_bigram": interval(0.0),
            }
            for k in (1, 2)
        ]
        for subset in ("all", "changed")
    }
