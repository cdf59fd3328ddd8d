"""A dataset with texts of its own, the cache made from it, and the stage's config for them."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.lerobot_fixtures import make_dataset
from tests.text_fixtures import save_text_model
from world_modality.lerobot_adapter import open_dataset
from world_modality.precompute_instruction_embeddings import InstructionConfig
from world_modality.precompute_world_tokens import PrecomputeConfig
from world_modality.precompute_world_tokens import run as precompute_world_tokens

NAME = "local/tiny"
NUM_FRAMES = 78
# Texts by task that are not the dataset's own.
OTHER_TEXTS = {0: "shove the cube", 1: "raise the cube", 2: "pull the drawer"}


def add_column(root: Path, name: str, values: list[Any]) -> None:
    """Give the dataset a further column, as a recording with that feature has it."""
    (path,) = root.glob("data/*/*.parquet")
    table = pq.read_table(path)
    if name in table.column_names:
        table = table.drop_columns([name])
    pq.write_table(table.append_column(name, pa.array(values)), path)
    info = json.loads((root / "meta" / "info.json").read_text())
    dtype = "string" if isinstance(next(v for v in values if v is not None), str) else "int64"
    info["features"][name] = {"dtype": dtype, "shape": [1], "names": None}
    (root / "meta" / "info.json").write_text(json.dumps(info))


def columns_of(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the dataset's episode_index and task_index."""
    (block,) = open_dataset(NAME, dataset_root=root).columns(["episode_index", "task_index"])
    return block["episode_index"], block["task_index"]


def build_home(home: Path) -> None:
    """Fill a folder with a dataset that has texts, its cache, and a text model."""
    root = make_dataset(home / NAME)
    episodes, tasks = columns_of(root)
    add_column(root, "instruction", [OTHER_TEXTS[t] for t in tasks.tolist()])
    add_column(root, "episode_id", [f"recording {7 - e}" for e in episodes.tolist()])
    add_column(root, "skill", [5 + t for t in tasks.tolist()])
    config = PrecomputeConfig(
        dataset_name=NAME,
        dataset_root=root,
        cache_dir=home / "cache",
        vision_model_name="pixel-pca",
        pixel_pca_size=8,
        pixel_pca_components=6,
        vq_num_tokens=12,
    )
    precompute_world_tokens(config)
    save_text_model(home / "distilbert-base-uncased")


def copy_dataset(home: Path, folder: Path) -> Path:
    """Copy the dataset to where HF_LEROBOT_HOME is `folder`."""
    return shutil.copytree(home / NAME, folder / NAME)


def copy_cache(home: Path, folder: Path) -> InstructionConfig:
    """Copy the cache and return a config for it."""
    shutil.copytree(home / "cache", folder / "cache")
    return InstructionConfig(
        dataset_name=NAME,
        cache_dir=folder / "cache",
        text_model_name=str(home / "distilbert-base-uncased"),
    )


def changed(config: InstructionConfig, **changes: Any) -> InstructionConfig:
    return dataclasses.replace(config, **changes)


def jsonl(texts: dict[int, str]) -> str:
    lines = [json.dumps({"task_index": i, "task": text}) for i, text in texts.items()]
    return "\n".join(lines) + "\n"


def written(folder: Path, texts: dict[int, str]) -> str:
    path = folder / "tasks.jsonl"
    path.write_text(jsonl(texts))
    return str(path)
