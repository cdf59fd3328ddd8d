"""The benchmarks that need neither a simulator nor many processes, at a tiny size.

The help of the others is shown by `tests/project/test_command_lines.py`.
"""

import dataclasses
import json
import math
from itertools import count

import pytest

from benchmarks.speed import bench_codebook, bench_history, bench_precompute, bench_training
from benchmarks.speed.harness.measuring import Comparison, take_turns

TINY_TRAINING = bench_training.BenchTrainingConfig(
    parts=("throughput", "loading", "flops", "seeds", "checkpoints"),
    num_frames=640,
    embedding_dim=8,
    d_model=16,
    n_layers=1,
    wide_d_model=32,
    batch_size=16,
    num_rounds=1,
    steps_per_round=1,
    recorded_frames=320,
    recorded_dim=4,
    image_size=8,
    loading_rounds=1,
    device="cpu",
)
TINY_PRECOMPUTE = bench_precompute.BenchPrecomputeConfig(
    parts=("passes",),
    num_frames=192,
    image_size=32,
    encoders=("random-vit", "pixel-pca"),
    random_vit_image_size=14,
    num_rounds=1,
    device="cpu",
)
TINY_CODEBOOK = bench_codebook.BenchCodebookConfig(
    num_frames=600,
    embedding_dim=4,
    num_tokens=8,
    vq_fit_frames=300,
    memory_frames=200,
    num_rounds=1,
    device="cpu",
)

TINY_HISTORY = bench_history.BenchHistoryConfig(
    lengths=(2,), embedding_dim=8, d_model=16, n_layers=1, num_rounds=1, calls_per_round=1
)


@pytest.mark.parametrize(
    ("benchmark", "config"),
    [
        (bench_history, TINY_HISTORY),
        (bench_training, TINY_TRAINING),
        (bench_precompute, TINY_PRECOMPUTE),
        (bench_codebook, TINY_CODEBOOK),
    ],
)
def test_every_figure_is_printed_and_written_with_its_ratio(
    benchmark, config, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(bench_training, "NUM_WORKERS", (0,))
    path = tmp_path / "figures.json"
    figures = benchmark.run(dataclasses.replace(config, json_path=path))
    written = json.loads(path.read_text("utf-8"))
    assert [row["name"] for row in written["figures"]] == [figure.name for figure in figures]
    printed = capsys.readouterr().out
    for figure in figures:
        assert figure.line() in printed
        assert math.isfinite(figure.value.median)
        assert bool(figure.peer) == (figure.ratio is not None)
    assert any(figure.ratio for figure in figures)


def test_a_ratio_is_taken_round_by_round_without_the_round_that_warms_up():
    numbers = count()
    turns = {"fast": lambda: 1.0, "slow": lambda: (9.0, 2.0, 4.0, 3.0)[next(numbers)]}
    rates = Comparison.rates("samples/s", take_turns(turns, num_rounds=3), {"fast": 6, "slow": 12})
    assert list(rates.rounds["slow"]) == [6, 3, 4]
    figure = rates.figure("slow", "fast", "at least 2")
    assert dataclasses.astuple(figure.ratio) == pytest.approx((4 / 6, 0.5, 1))
    for part in ("4 (3 to 6) samples/s", "0.667 (0.5 to 1) times fast", "wanted at least 2"):
        assert part in figure.line()


def test_a_history_of_tokens_keeps_a_token_a_frame_and_a_context_the_frames():
    figures = bench_history.run(TINY_HISTORY)
    held = {f.name: f.value.median for f in figures if f.unit == "bytes remembered"}
    frame, token = 2 * 8 + 4 * 8, 4
    assert held == {
        "no past": frame + token,
        "--world_history 2": frame + 3 * token,
        "--context_frames 3": 3 * frame + token,
    }
