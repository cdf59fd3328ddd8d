"""A dataset with one random change is refused, or gives what the undamaged one gives.

A change can be noticed where it breaks the form of a file, or where one part of the dataset
contradicts another: keys, rows, counts, ids, indices, times, types, missing values, numbers that
are not finite, task texts, and the checksums that PNG images carry. What nothing contradicts cannot
be noticed: another number in the state or action of a frame, other pixels of an image file or video
that decodes without an error, another text in a column of texts. Then the frames concerned get what
the file says now, and nothing else changes.
"""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coc_vla import coc_generation
from coc_vla.coc_generation import CocGenerationConfig
from coc_vla.labels.record import read_records
from tests.fixtures.instruction import add_column
from tests.fixtures.lerobot import TASKS, make_dataset
from tests.fixtures.tiny_models import save_text_model
from tests.fuzz.damage import (
    Cases,
    change_byte,
    change_json_file,
    change_table,
    command_line,
    damage_file,
    drawn,
)
from world_modality import precompute_instruction_embeddings, precompute_world_tokens
from world_modality.cache.contract import Cache
from world_modality.source.frame_decoding import frame_blocks
from world_modality.source.lerobot_adapter import open_dataset

NUM_CASES = 250  # of each of the two datasets
NAME = "local/tiny"
NUM_EPISODES = 4
CAMERA = "observation.image"
# Columns of the data that other columns or files contradict where they are changed.
STRUCTURE = ("index", "episode_index", "frame_index", "timestamp", "task_index")
# Where the manifest keeps what a dataset says of itself and nothing contradicts.
FREE_WORDS = (
    "content_sha256",
    "columns_sha256",
    "recording",
    "state_names",
    "environment_state_names",
)


def one_file(change, is_meant):
    """Return a change to one of the files that are meant."""

    def damage_one(root, rng):
        paths = [p for p in sorted(root.rglob("*")) if p.is_file() and is_meant(p)]
        return change(paths[int(rng.integers(len(paths)))], rng)

    return damage_one


# Each with its share of the cases.
DAMAGE = {
    one_file(change_byte, lambda path: path.stat().st_size): 0.3,
    one_file(change_json_file, lambda path: path.suffix == ".json"): 0.05,
    one_file(change_json_file, lambda path: path.name == "info.json"): 0.15,
    one_file(change_table, lambda path: "data" in path.parts): 0.25,
    one_file(change_table, lambda path: path.suffix == ".parquet" and "meta" in path.parts): 0.2,
    one_file(damage_file, lambda path: True): 0.05,
}


def damage(root, seed):
    rng = np.random.default_rng(seed)
    change = drawn(DAMAGE, rng)
    return change(root, rng)


def stages(root, out, text_model):
    """Give each stage's command and config; the second needs the first's cache."""
    vision = precompute_world_tokens.PrecomputeConfig(
        dataset_name=NAME,
        dataset_root=root,
        cache_dir=out / "cache",
        image_key=(CAMERA,),
        vision_model_name="random-vit",
        random_vit_size="tiny",
        random_vit_image_size=14,
        vq_num_tokens=4,
        vq_iterations=2,
        val_fraction=0.25,
        device="cpu",
    )
    text = precompute_instruction_embeddings.InstructionConfig(
        dataset_name=NAME,
        dataset_root=root,
        cache_dir=out / "cache",
        instruction_key="instruction",
        text_model_name=str(text_model),
        device="cpu",
    )
    labels = CocGenerationConfig(
        dataset_name=NAME,
        dataset_root=root,
        output_jsonl=out / "coc.jsonl",
        backend="rules",
        position_dims=(0, 1, 2),
        gripper_dim="none",
    )
    return {
        "vision": (precompute_world_tokens.run, vision),
        "text": (precompute_instruction_embeddings.run, text),
        "labels": (coc_generation.run, labels),
    }


def results(root, out, done):
    """Read back what the stages that went through have written."""
    found = {}
    if "vision" in done:
        cache = Cache(out / "cache", NAME)
        found = {name: np.array(cache.load(name)) for name in cache.manifest["arrays"]}
        dataset = cache.manifest["dataset"]
        found["dataset"] = {k: v for k, v in dataset.items() if k not in FREE_WORDS}
        source = open_dataset(NAME, dataset_root=root)
        indices = np.arange(source.num_frames)
        found["pixels"] = [
            image for block in frame_blocks(source, CAMERA, indices, 64) for image in block
        ]
    if "labels" in done:
        found["labels"] = [
            (r.episode_id, r.instruction, r.keyframe_indices, r.coc_text)
            for r in read_records(out / "coc.jsonl")
        ]
    return found


def differing_frames(found, expected):
    """Return the frames whose rows differ between two results; all where their shapes do."""
    if len(found) != len(expected):
        return set(range(max(len(found), len(expected))))
    return {
        frame
        for frame, (a, b) in enumerate(zip(found, expected, strict=True))
        if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    }


def cells_that_differ(root, undamaged):
    """Return the rows whose cells differ, by column; None where a contradiction could be seen.

    Reads the parquet files of the data with pyarrow alone.
    """
    tables = []
    for folder in (root, undamaged):
        try:
            (path,) = folder.glob("data/*/*.parquet")
            tables.append(pq.read_table(path))
        except (pa.ArrowException, OSError, ValueError):
            return None
    found, expected = tables
    if not found.schema.equals(expected.schema) or found.num_rows != expected.num_rows:
        return None
    rows = {}
    for name in expected.column_names:
        pairs = zip(found[name].to_pylist(), expected[name].to_pylist(), strict=True)
        rows[name] = {row for row, (a, b) in enumerate(pairs) if a != b}
    if any(rows[name] for name in STRUCTURE):
        return None
    return rows


FRAMES_OF = {
    "states": "observation.state",
    "actions": "action",
    "pixels": CAMERA,
    "embeddings": CAMERA,
    "instruction_embeddings": "instruction",
}


def verdict(found, expected, root, undamaged):
    """Say whether two results are the same, or differ where nothing could tell."""
    changed = {
        name: differing_frames(found[name], expected[name])
        for name in FRAMES_OF
        if name in found and differing_frames(found[name], expected[name])
    }
    fixed = {"dataset", "episode_index", "task_index", "labels"} & set(found)
    if "states" in changed or "actions" in changed:
        fixed.discard("labels")  # motion by rule follows the states
    if any(not _equal(found[name], expected[name]) for name in fixed):
        return "silently different"
    if not changed:
        tokens = {"world_tokens", "codebook_centroids"} & set(found)
        equal = all(_equal(found[name], expected[name]) for name in tokens)
        return "same" if equal else "silently different"
    rows = cells_that_differ(root, undamaged)
    is_video = any(root.glob("videos/*"))
    for name, frames in changed.items():
        if is_video and name in ("pixels", "embeddings"):
            videos_differ = any(
                p.read_bytes() != (undamaged / p.relative_to(root)).read_bytes()
                for p in root.glob("videos/*/*/*.mp4")
            )
            if not videos_differ:
                return "silently different"
        elif rows is None or not frames <= rows[FRAMES_OF[name]]:
            return "silently different"
    return "undetectable"


def _equal(a, b):
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@pytest.fixture(scope="module", params=["image", "video"])
def undamaged(request, tmp_path_factory):
    """Return a dataset's folder, a text model, and what the stages make of it."""
    home = tmp_path_factory.mktemp(request.param)
    root = make_dataset(
        home / "tiny", num_episodes=NUM_EPISODES, num_frames=8, camera_dtype=request.param
    )
    tasks = pq.read_table(next(root.glob("data/*/*.parquet")))["task_index"].to_pylist()
    add_column(root, "instruction", [f"please {TASKS[task]}" for task in tasks])
    text_model = save_text_model(home / "text")
    for run, config in stages(root, home / "out", text_model).values():
        outcome = command_line(run, config)
        assert outcome.kind == "done", outcome.said
    expected = results(root, home / "out", {"vision", "text", "labels"})
    assert len(expected["pixels"]) == len(expected["states"])
    return root, text_model, expected


@pytest.mark.slow
def test_a_dataset_with_one_random_change_is_refused_or_gives_the_same(undamaged, tmp_path):
    intact, text_model, expected = undamaged
    cases = Cases()
    for seed in range(NUM_CASES):
        home = tmp_path / str(seed)
        root = shutil.copytree(intact, home / "tiny")
        case = f"seed {seed}, {damage(root, seed)}"
        done = set()
        for name, (run, config) in stages(root, home / "out", text_model).items():
            if name == "text" and "vision" not in done:
                continue
            outcome = command_line(run, config)
            if outcome.kind == "done":
                done.add(name)
            else:
                cases.add(name, outcome.kind, case, outcome.said)
        if done:
            kind = verdict(results(root, home / "out", done), expected, root, intact)
            cases.add("vision" if "vision" in done else "labels", kind, case, str(sorted(done)))
        shutil.rmtree(home)
    cases.require_no_faults()
    assert cases.counts["vision", "refused"] > NUM_CASES / 4, "the damage is real"


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("info.json", lambda text: text.replace('"fps": 10', '"fps": 11'), "11 frames per second"),
        ("info.json", lambda text: text.replace('"fps": 10', '"fps": "10"'), "has fps '10'"),
        ("tasks.parquet", None, "meta/episodes lists ['push the block'] for it"),
    ],
)
def test_parts_of_a_dataset_that_contradict_each_other_are_refused(tmp_path, name, change, told):
    root = make_dataset(tmp_path / "tiny", num_episodes=2, num_frames=3)
    path = root / "meta" / name
    if change is not None:
        path.write_text(change(path.read_text("utf-8")))
    else:
        table = pq.read_table(path)
        key = next(key for key in table.column_names if key != "task_index")
        texts = pa.array([f"{text}s" for text in table[key].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index(key), key, texts), path)
    run, config = stages(root, tmp_path / "out", tmp_path)["labels"]
    outcome = command_line(run, config)
    assert outcome.kind == "refused"
    assert told in outcome.said
