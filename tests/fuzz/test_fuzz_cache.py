"""A cache with one random change is refused, or gives what the undamaged one gives."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.cache import SyntheticSpec, write_synthetic_cache
from tests.fixtures.policy import tiny_train_config, weights
from tests.fuzz.damage import (
    Stage,
    change_byte,
    change_json_file,
    change_rows,
    command_line,
    damage_file,
    drawn,
    run_cases,
)
from world_modality import analyze_world_tokens, eval_offline
from world_modality.cache.contract import Cache
from world_modality.training import single as train

NUM_CASES = 500
SPEC = SyntheticSpec(
    num_episodes=6, min_length=6, max_length=8, environment_dim=2, instruction_dim=3
)
# What a stage reports beside figures: where it wrote them.
PLACES = ("checkpoint", "log_dir", "out_dir", "cache_dir")


def change_array(path, rng):
    """Change one number, row or axis, or the dtype, of a `.npy` file."""
    array = np.load(path)
    kind = str(rng.choice(["number", "rows", "dtype", "order", "not finite"]))
    at = tuple(int(rng.integers(size)) for size in array.shape)
    if kind == "number":
        array[at] = array[at] + 1
    elif kind == "not finite" and array.dtype.kind == "f":
        array[at] = np.nan
    elif kind == "rows":
        rows, said = change_rows(array, rng)
        array, kind = np.stack(rows), said
    elif kind == "order":
        array = np.asfortranarray(array)
    else:
        array = array.astype(array.dtype.newbyteorder())
    np.save(path, array)
    return f"{path.name} {at}: {kind}"


def change_manifest(path, rng):
    return change_json_file(path.with_name("train_manifest.json"), rng)


def change_manifest_byte(path, rng):
    return change_byte(path.with_name("train_manifest.json"), rng)


# Each with its share of the cases; `path` is one of the arrays.
DAMAGE = {
    change_byte: 0.2,
    change_array: 0.25,
    change_manifest: 0.3,
    change_manifest_byte: 0.2,
    damage_file: 0.05,
}


def damage(folder, rng):
    change = drawn(DAMAGE, rng)
    files = sorted(folder.glob("*.npy"))
    if change is damage_file:
        files.append(folder / "train_manifest.json")
    return change(files[int(rng.integers(len(files)))], rng)


def stages(cache_dir, checkpoint, out_dir):
    cache = Cache(cache_dir, "synthetic/demo")
    analyze = analyze_world_tokens.AnalyzeConfig(
        cache.dataset_name, cache_dir, max_k=2, out_dir=out_dir / "analysis"
    )
    evaluate = eval_offline.EvalOfflineConfig(
        checkpoint, cache.dataset_name, cache_dir, out_dir=out_dir / "eval", device="cpu"
    )
    training = tiny_train_config(
        cache, out_dir / "logs", "C", num_epochs=1, d_model=16, n_layers=1, use_language=True
    )

    def read_json(*parts):
        return lambda: json.loads(out_dir.joinpath(*parts).read_text("utf-8"))

    def read_weights():
        trained = weights(out_dir / "logs" / "model_C_epoch0.pt")
        return {name: value.tolist() for name, value in trained.items()}

    return {
        "analyze": Stage(analyze_world_tokens.run, analyze, read_json("analysis", "analysis.json")),
        "evaluate": Stage(eval_offline.run, evaluate, read_json("eval", "eval_offline.json")),
        "train": Stage(train.run, training, read_weights),
    }


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """Return a cache's folder, a checkpoint trained on it, and each stage's result."""
    home = tmp_path_factory.mktemp("undamaged")
    cache = write_synthetic_cache(home / "cache", SPEC)
    config = tiny_train_config(cache, home / "logs", "C", num_epochs=1, d_model=16, n_layers=1)
    checkpoint = train.run(config).checkpoint
    made = stages(home / "cache", checkpoint, home / "out")
    expected = {name: stage.result() for name, stage in made.items()}
    return home / "cache", checkpoint, expected


@pytest.mark.slow
def test_a_cache_with_one_random_change_is_refused_or_gives_the_same(
    undamaged, tmp_path, monkeypatch
):
    monkeypatch.setattr("world_modality.analyze_world_tokens.save_plot", lambda *_: None)
    monkeypatch.setattr(eval_offline, "plot_eval", lambda *_: None)
    cache_dir, checkpoint, expected = undamaged

    def prepare(home, rng):
        shutil.copytree(cache_dir, home / "cache")
        said = damage(home / "cache" / "synthetic" / "demo", rng)
        return said, stages(home / "cache", checkpoint, home / "out")

    def judge(_, name, outcome, found):
        return "same" if same(found, expected[name]) else "silently different"

    counts = run_cases(tmp_path, NUM_CASES, prepare, judge)
    assert all(counts[name, "refused"] > NUM_CASES / 4 for name in expected), "the damage is real"


def same(found, expected):
    """Compare two reports without the folders they name."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in PLACES}
        return value

    return plain(found) == plain(expected)


def test_a_changed_manifest_is_refused_whatever_the_change(tmp_path):
    cache = write_synthetic_cache(tmp_path, SPEC)
    config = analyze_world_tokens.AnalyzeConfig(cache.dataset_name, tmp_path, max_k=1)
    text = cache.manifest_path.read_text("utf-8")
    for old, new in (('"fps": 10.0', '"fps": 20.0'), ("do task 0", "do task 1")):
        assert old in text
        cache.manifest_path.write_text(text.replace(old, new))
        outcome = command_line(analyze_world_tokens.run, config)
        assert outcome.kind == "refused"
        assert "train_manifest.json was altered" in outcome.said
        assert "python -m world_modality.precompute_world_tokens" in outcome.said


def test_a_manifest_of_before_checksums_is_read(tmp_path: Path):
    cache = write_synthetic_cache(tmp_path, SPEC)
    content = json.loads(cache.manifest_path.read_text("utf-8"))
    del content["checksum"]
    cache.manifest_path.write_text(json.dumps(content))
    assert Cache(tmp_path, cache.dataset_name).manifest == cache.manifest
