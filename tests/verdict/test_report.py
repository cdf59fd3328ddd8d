import dataclasses
import json
import locale
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.libero.eval_libero_success import EvalLiberoConfig
from benchmarks.metaworld.eval_metaworld_success import EvalMetaworldConfig
from benchmarks.rollouts.config import RolloutConfig
from tests.fixtures.verdict import (
    SHARED_FLAGS,
    World,
    write_json,
    write_matrix,
    write_rollouts,
    write_run,
)
from tests.project.test_readme import parsed_config
from tests.verdict.conftest import ARMS, RATES, block, starting, verdict_items
from world_modality.report import ReportConfig, build_document, run
from world_modality.system.cli import write_config
from world_modality.verdict import drawing
from world_modality.verdict.document import Commands, Figure, Table, csv_text, latex
from world_modality.verdict.evidence import Evidence, collect_evidence
from world_modality.verdict.findings import compare_arms
from world_modality.verdict.measures import ACTION_ERROR, SUCCESS
from world_modality.verdict.rollout_file import read_rollouts
from world_modality.verdict.sections.media import _caption
from world_modality.verdict.wording import contrast_reading

ROOT = Path(__file__).parents[2]


def verdicts(evidence, measure):
    results = compare_arms(measure, evidence, evidence.main)
    return {result.contrast.name: contrast_reading(result) for result in results}


def left_out(evidence: Evidence) -> dict[str, str]:
    return {Path(one.path.split(" (")[0]).name: one.reason for one in evidence.left_out}


def test_a_planted_effect_is_found_and_the_arms_without_one_are_not_resolved(matrix):
    evidence = collect_evidence([matrix])
    for measure in (ACTION_ERROR, SUCCESS):
        found = verdicts(evidence, measure)
        assert found["B − A"] == "B is better"
        assert found["C − B"] == "not resolved"
    items = verdict_items(build_document((matrix,)))
    first, second, third = (
        starting(items, words) for words in ("The auxiliary loss", "The token as", "Use of the")
    )
    assert "B is better" in first
    assert second.count("not resolved") == 2
    assert "raises the error (corrupted over clean 1.50" in third


def test_a_planted_null_is_not_resolved_in_93_of_100_matrices(tmp_path):
    arms = dict.fromkeys(("A", "B", "C", "C_no_world_input"), 0.0)
    write_matrix(tmp_path, World(), arms)
    evidence = collect_evidence([tmp_path])
    runs = [run for _, _, run in evidence.main.all_runs()]
    quiet = 0
    for number in range(100):
        world = World(seed=number)
        of_seed = 0.01 * world.rng.normal(size=3)
        for one in runs:
            # Trainings of one arm differ, arms do not; uncorrected, ten matrices would find one.
            own = of_seed[one.seed] + 0.015 * world.rng.normal()
            one.evaluation["episodes"]["squared_error_sum"] = world.error_sums(0.05, own).tolist()
            one.evaluation["episodes"]["num_steps"] = world.num_steps.tolist()
        found = verdicts(evidence, ACTION_ERROR)
        assert found.pop("C − C_no_world_input").startswith("identity check")
        quiet += set(found.values()) == {"not resolved"}
    assert quiet >= 93


def test_the_same_inputs_give_the_same_report_apart_from_its_time(matrix, tmp_path, monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setattr("world_modality.report._made", lambda name=name: f"made {name}")
        run(ReportConfig((matrix,), tmp_path / name))
    one, two = (
        {p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()}
        for d in (tmp_path / "one", tmp_path / "two")
    )
    assert one.keys() == two.keys()
    assert len(one) > 15
    for path, content in one.items():
        assert content.replace(b"made one", b"made two") == two[path], path


def test_runs_of_another_cache_are_compared_apart(matrix):
    world = World(seed=5)
    for seed in range(2):
        sums = world.error_sums(0.0, 0.0)
        write_run(matrix / f"other_b_{seed}", world, "B", seed, sums, fingerprint="e" * 64)
    evidence = collect_evidence([matrix])
    assert evidence.main.fingerprint == "f" * 64
    assert len(evidence.main.runs["B"]) == 3
    assert "cache eeeeeeeeee instead of ffffffffff" in left_out(evidence)["other_b_0"]
    rows = block(build_document((matrix,)), Table, "settings").rows
    assert {row[0].split()[0] for row in rows} == {"main", "cache"}


def test_arm_a_is_compared_with_every_group_whose_flags_it_can_use(tmp_path):
    world = World()
    for seed in range(3):
        for arm, changes in (
            *(("A", {"world_loss_weight": 0.9}), ("B", {})),
            *(("B", {"future_stride": 4}), ("C", {"world_loss_weight": 0.5})),
        ):
            if (arm, seed) != ("C", 0):
                folder = tmp_path / f"{arm}_{seed}_{'_'.join(changes)}"
                write_run(folder, world, arm, seed, world.error_sums(0, 0), **changes)
    evidence = collect_evidence([tmp_path])
    groups = [group.arms for group in evidence.groups]
    assert groups == [["A", "B"], ["A", "B"], ["A", "C"]]
    reasons = left_out(evidence)
    assert {name[0] for name in reasons} == {"B", "C"}
    assert "world_loss_weight 0.5 instead of 0.2" in reasons["C_1_world_loss_weight"]
    assert evidence.num_other_runs == len(reasons) == 5


def test_world_input_knobs_make_an_arm_of_its_own(tmp_path):
    world = World()
    write_run(tmp_path / "c", world, "C", 0, world.error_sums(0, 0))
    write_run(tmp_path / "soft", world, "C", 0, world.error_sums(0, 0), world_input_scale=0.1)
    past = {"world_history": 8, "world_history_stride": 4}
    write_run(tmp_path / "past", world, "C", 0, world.error_sums(0, 0), **past)
    evidence = collect_evidence([tmp_path])
    with_past = "C (world_history 8, world_history_stride 4)"
    assert evidence.main.arms == ["C", "C (scale 0.1)", with_past]
    assert "C (scale 0.1) − C" in verdicts(evidence, ACTION_ERROR)


def test_a_control_encoder_joins_where_the_data_are_the_same(tmp_path):
    world = World()
    write_run(tmp_path / "a", world, "A", 0, world.error_sums(0, 0))
    write_run(tmp_path / "b", world, "B", 0, world.error_sums(0, 0))
    for name, split in (("random", "s" * 64), ("random_other_split", "t" * 64)):
        data = {"encoder": "random-vit", "split": split}
        sums = world.error_sums(0, 0)
        write_run(tmp_path / name, world, "A", 0, sums, fingerprint=name * 8, data=data)
    evidence = collect_evidence([tmp_path])
    assert evidence.main.arms == ["A", "A_random", "B"]
    assert evidence.main.runs["A_random"][0].folder.name == "random"
    assert "split tttt" in left_out(evidence)["random_other_split"]


def test_rollouts_of_another_gl_backend_are_left_out(matrix):
    checkpoint = matrix / "c_0" / "model_C_epoch1.pt"
    write_rollouts(matrix / "osmesa", World(), [checkpoint], [0.5], gl_backend="osmesa")
    evidence = collect_evidence([matrix])
    reason = next(o.reason for o in evidence.left_out if "osmesa" in o.path)
    assert 'gl_backend "osmesa" instead of "egl"' in reason
    assert evidence.conditions["gl_backend"] == "egl"


def test_rollouts_are_matched_by_the_checkpoint_itself(matrix):
    (matrix / "c_0" / "model_C_epoch1.pt").write_bytes(b"trained again since")
    evidence = collect_evidence([matrix])
    reasons = [o.reason for o in evidence.left_out if "c_0/model_C_epoch1.pt" in o.path]
    assert len(reasons) == 1
    assert "no run in this report has its checkpoint" in reasons[0]
    results = compare_arms(SUCCESS, evidence, evidence.main)
    assert {r.contrast.name: r.seeds for r in results}["C − B"] == (1, 2)


def test_missing_empty_and_damaged_runs_are_listed(matrix, tmp_path):
    def copied(run: str, name: str) -> Path:
        return Path(shutil.copytree(matrix / run, matrix / name))

    (matrix / "empty").mkdir()
    shutil.rmtree(copied("a_0", "unevaluated") / "eval_offline_model_A_epoch1")
    report = copied("a_0", "damaged") / "eval_offline_model_A_epoch1" / "eval_offline.json"
    report.write_text(report.read_text("utf-8")[:50])
    log = copied("a_0", "unfinished") / "metrics.jsonl"
    log.write_text(log.read_text("utf-8").splitlines(keepends=True)[0])
    earlier = copied("c_0", "earlier") / "eval_offline_model_C_epoch1" / "eval_offline.json"
    content = json.loads(earlier.read_text("utf-8"))
    content["episodes"]["top1_hits_all"] = content["episodes"]["top1_hits_all"][0]
    write_json(earlier, content)
    copied("a_0", "twin")
    config = json.loads((matrix / "a_0/config.json").read_text("utf-8"))
    write_json(matrix / "begun" / "config.json", config)
    write_json(matrix / "explaining" / "config.json", {**config, "coc_loss_weight": 1.0})
    (matrix / "no_episodes").mkdir()
    (matrix / "no_episodes" / "results.jsonl").write_text("")
    expected = {
        "empty": "empty folder",
        "unevaluated": "run python -m world_modality.eval_offline --checkpoint",
        "damaged": "eval_offline.json is damaged",
        "unfinished": "stopped after epoch 1 of 2",
        "earlier": "token hits at k = 1 alone",
        "twin": "same arm, seed and settings as",
        "begun": "no readable metrics.jsonl",
        "explaining": "eval_coc.json",
        "results.jsonl": "holds no finished episode",
        "nowhere": "no such folder",
    }
    reasons = left_out(collect_evidence([matrix, tmp_path / "nowhere"]))
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]
    listed = {row[0] for row in block(build_document((matrix,)), Table, "left_out").rows}
    assert str(matrix / "damaged") in listed


def test_the_command_of_each_run_is_one_that_its_script_understands(matrix, monkeypatch):
    for arm, seed, finished in collect_evidence([matrix]).main.all_runs():
        config = parsed_config(finished.command, monkeypatch)
        assert (config.model_type, config.seed) == (arm, seed)
        assert config.learning_rate == finished.config["learning_rate"]


@pytest.mark.parametrize(
    ("suite", "config_type", "own"),
    [
        ("metaworld", EvalMetaworldConfig, {"tasks": ("push-v3", "reach-v3")}),
        ("libero_object", EvalLiberoConfig, {"benchmark": "libero_object"}),
    ],
)
def test_the_command_of_rollouts_repeats_the_flags_that_they_had(
    tmp_path, monkeypatch, suite, config_type, own
):
    (checkpoint,) = write_matrix(tmp_path, World(), {"C": 0.0}, num_seeds=1)["C"]
    path = write_rollouts(tmp_path / "task", World(), [checkpoint], [0.5], corruption="task")
    path.write_text(path.read_text("utf-8").replace('"suite": "metaworld"', f'"suite": "{suite}"'))
    flags = {"check_parity": False, "n_trials": 7, "corrupt_world": "task", **own}
    given = config_type((checkpoint,), out_dir=tmp_path / "task", env_num=3, resume=True, **flags)
    write_config(given, path.with_name("config.json"))
    (rollouts,) = read_rollouts(path)
    assert ("--tasks" in rollouts.command) == ("tasks" in own)
    repeated = parsed_config(rollouts.command, monkeypatch)
    default = RolloutConfig.env_num
    assert repeated == dataclasses.replace(given, env_num=default, resume=False)
    commands, _ = (b for b in build_document((tmp_path,)).blocks() if isinstance(b, Commands))
    assert rollouts.command in commands.lines


def test_one_seed_is_called_one_seed(tmp_path):
    write_matrix(tmp_path, World(), ARMS, num_seeds=1, success=RATES)
    document = build_document((tmp_path,))
    assert "One seed" in document.sections[0].blocks[-1].text
    assert "B is better, for this one seed" in starting(verdict_items(document), "The auxiliary")
    rows = {row[0]: row for row in block(document, Table, "resolution_action_mse").rows}
    assert rows["C − B"][3] == "unknown from one seed"


def test_the_order_in_which_episodes_ended_changes_nothing(tmp_path):
    world = World()
    checkpoint = tmp_path / "model_C_epoch1.pt"
    checkpoint.write_bytes(b"weights")
    path = write_rollouts(tmp_path / "rollouts", world, [checkpoint], [0.5])
    (before,) = read_rollouts(path)
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(reversed(lines)), "utf-8")
    (after,) = read_rollouts(path)
    assert list(after.outcomes.items()) == list(before.outcomes.items())
    assert list(after.num_steps.items()) == list(before.num_steps.items())


@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_other_dropout_masks_are_said_to_be_part_of_what_seeds_vary_by(
    tmp_path, monkeypatch, dropout
):
    monkeypatch.setitem(SHARED_FLAGS, "dropout", dropout)
    write_matrix(tmp_path, World(), ARMS, num_seeds=2)
    caution = build_document((tmp_path,)).sections[0].blocks[-1].text
    assert ("other dropout masks" in caution) == (dropout > 0)


def test_every_figure_has_axes_units_and_n(matrix, monkeypatch):
    drawn = []
    to_svg = drawing.svg_bytes

    def keep(figure):
        drawn.append(figure)
        return to_svg(figure)

    for name in ("contrast", "success", "corruption", "learning", "codebook"):
        monkeypatch.setattr(f"world_modality.verdict.sections.{name}.svg_bytes", keep)
    document = build_document((matrix,))
    figures = [one for one in document.blocks() if isinstance(one, Figure)]
    assert len(figures) == len(drawn) >= 6
    for one, figure in zip(figures, drawn, strict=True):
        words = one.caption + "".join(axis.get_title() for axis in figure.axes)
        for axis in figure.axes:
            assert axis.get_xlabel()
            categories = any(re.search("[a-z]", t.get_text()) for t in axis.get_yticklabels())
            assert axis.get_ylabel() or categories
            words += "".join(label.get_text() for label in axis.get_yticklabels())
        assert re.search(r"n = |seeds", words), one.name
        assert one.rows
        assert len(one.rows[0]) == len(one.header)


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(tmp_path):
    write_matrix(tmp_path / "<b>runs & co", World(), ARMS, num_seeds=1)
    run(ReportConfig((tmp_path / "<b>runs & co",), tmp_path / "report"))
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "&lt;b&gt;runs &amp; co" in page
    assert "<b>runs" not in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page)


def test_token_accuracy_has_an_interval_at_each_horizon(matrix):
    document = build_document((matrix,))
    figure = block(document, Figure, "token_accuracy")
    rows = [dict(zip(figure.header, row, strict=True)) for row in figure.rows]
    of_c = [row for row in rows if row["predictor"] == "C"]
    assert [(r["subset"], r["frames_ahead"]) for r in of_c] == [
        (subset, k) for subset in ("all", "changed") for k in (1, 2)
    ]
    assert all(r["low"] <= r["top1_percent"] <= r["high"] for r in of_c)
    assert {r["top1_percent"] for r in of_c if r["subset"] == "changed"} == {50.0}


def test_films_and_token_grids_are_shown(matrix):
    (matrix / "tokens").mkdir()
    (matrix / "tokens" / "contact_sheet.jpg").write_bytes(b"jpeg")
    folder = matrix / "rollouts_0" / "videos" / "model_C" / "push"
    folder.mkdir(parents=True)
    for episode in range(9):
        (folder / f"episode_{episode:03d}_success.mp4").write_bytes(b"film")
    section = next(
        s for s in build_document((matrix,)).sections if s.title.startswith("Tokens and")
    )
    assert [getattr(block, "mime", "") for block in section.blocks].count("video/mp4") == 6
    assert section.blocks[-1].text.startswith("3 more films")


@pytest.mark.parametrize(
    "folder",
    [
        "cells/main/b_seed0/rollouts/videos/model_B_epoch4",
        "cells/compared_arms_seed0/rollouts/videos/b_seed0/train/model_B_epoch4",
    ],
)
def test_a_film_is_named_after_the_run_whether_or_not_others_were_rolled_out_with_it(folder):
    film = Path(folder) / "push-v3" / "episode_000_success.mp4"
    assert _caption(film) == "b_seed0, model_B_epoch4, push-v3: episode 000 success"


def test_the_command_line_writes_the_report_or_says_what_is_wrong(matrix, tmp_path):
    out_dir = tmp_path / "out"
    command = [sys.executable, "-m", "world_modality.report", "--out_dir", str(out_dir)]
    done = subprocess.run([*command, str(matrix)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    encoding = locale.getpreferredencoding(do_setlocale=False)
    summary = (out_dir / "summary.md").read_text("utf-8")
    assert summary.encode(encoding, "backslashreplace").decode(encoding) in done.stdout
    assert "B is better" in done.stdout
    sections = json.loads((out_dir / "summary.json").read_text("utf-8"))["sections"]
    assert [row["arm"] for row in sections["Main table"][0]["rows"]][:4] == list(ARMS)
    document = build_document((matrix,))
    main = block(document, Table, "main")
    text = (out_dir / "tables" / "main.tex").read_text("utf-8")
    assert r"C\_no\_world\_input" in text
    assert latex(main) == text
    assert text.count(r"\\") == len(main.rows) + 1
    assert csv_text(["a"], [["x,y"], [None]]) == 'a\n"x,y"\n""\n'
    for figure in (one for one in document.blocks() if isinstance(one, Figure)):
        assert (out_dir / "figures" / f"{figure.name}.csv").read_text("utf-8").count("\n") > 1
        assert f"figures/{figure.name}.svg" in (out_dir / "report.md").read_text("utf-8")
    wrong = [*command, str(tmp_path / "none")]
    failed = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "no such folder" in failed.stderr


def test_success_of_one_seed_has_newcombes_interval_and_mcnemars_test(tmp_path):
    write_matrix(tmp_path, World(num_rollouts=40), ARMS, num_seeds=1, success=RATES)
    evidence = collect_evidence([tmp_path])
    result = compare_arms(SUCCESS, evidence, evidence.main)[0]
    (pair,) = result.pairs
    assert result.interval == pair.difference
    assert result.p_value == pair.p_value < 0.05
    assert pair.num_both + pair.num_only_first + pair.num_only_second + pair.num_neither == 40
    assert np.sign(result.estimate.value) == 1
