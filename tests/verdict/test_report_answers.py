"""What the page says first, what it counts once, and the tables that it can be made from again."""

import csv
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.fixtures.verdict import World, write_json, write_rollouts, write_run
from tests.verdict.conftest import block, starting, verdict_items
from world_modality.report import ReportConfig, build_document, run
from world_modality.statistics import from_tables
from world_modality.statistics.design import Design, PlannedContrast, read_design
from world_modality.statistics.from_tables import TidyConfig
from world_modality.statistics.sequential import SeedPlan
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.verdict.document import Figure, Table
from world_modality.verdict.evidence import collect_evidence
from world_modality.verdict.findings import compare_arms
from world_modality.verdict.measures import ACTION_ERROR, SUCCESS, arm_mean
from world_modality.verdict.planned import planned_results

NUM_SEEDS = 6


def cells(root, rates, errors=None, num_rollouts=120):
    """Write cells as an experiment lays them out; arms differ by their rate and their error."""
    for seed in range(NUM_SEEDS):
        for number, (arm, rate) in enumerate(rates.items()):
            world = World(num_rollouts=num_rollouts)
            world.rng = np.random.default_rng([seed, number])
            folder = root / "cells" / "main" / f"{arm.lower()}_seed{seed}"
            model, _, control = arm.partition("_")
            flags = {"token_control": control or "none"}
            sums = world.error_sums((errors or {}).get(arm, 0.0), 0.0, 0.001)
            path = write_run(folder / "train", world, model, seed, sums, **flags)
            write_rollouts(folder / "rollouts", world, [path], [rate], seed_noise=0.05)
    return root


def planned(first, second, measure="success", margin=3.0, **changes):
    folders = (f"cells/main/{arm.lower()}_seed{{seed}}" for arm in (first, second))
    return PlannedContrast(first, second, measure, margin, *folders, **changes)


def designed(root, *contrasts):
    path = root / "design.json"
    Design(SeedPlan(NUM_SEEDS, 2), contrasts, {}).write(path)
    return path


@pytest.fixture
def experiment(tmp_path):
    """An experiment whose contrasts end in every way there is; returns folder and design."""
    rates = {"A": 0.3, "B": 0.7, "C": 0.7, "C_oracle": 0.7, "B_placebo": 0.3}
    root = cells(tmp_path, rates, errors={"C_oracle": -0.02})
    path = designed(
        root,
        planned("B", "A"),
        planned("A", "B", "action_error", 10.0),
        planned("C", "B"),
        planned("C_oracle", "C", "action_error", 5.0, role="positive control"),
        planned("B_placebo", "A", role="placebo"),
    )
    return root, path


def answers(document):
    return {
        (row[0].split(" (")[0], row[1]): row[2] for row in block(document, Table, "answers").rows
    }


def test_the_page_says_first_whether_the_assay_fired_and_then_what_is_known(experiment):
    root, design = experiment
    document = build_document((root / "cells",), design)
    titles = [section.title for section in document.sections]
    assert titles[:4] == [
        "Verdict",
        "The planned contrasts, look by look",
        "Paired differences",
        "Main table",
    ]
    assert document.sections[0].blocks[0].text.startswith("The assay fired. ")
    items = verdict_items(document)
    assert items[0].startswith("The assay fired: C_oracle − C: C_oracle is better (−")
    assert items[1].startswith("The placebo did not fire: B_placebo − A: not resolved (")
    found = answers(document)
    assert found["B − A", "success"] == "B is better"
    assert found["A − B", "action error"] == "the same within 10 %"
    assert found["C − B", "success"] == "not resolved"
    needed = next(one.text for one in document.sections[0].blocks if "Answered" in str(one))
    assert needed.startswith("Answered: 3 of 5 contrasts. C − B (success) is not resolved after 6")


def test_a_control_that_does_not_fire_and_a_placebo_that_does_are_said(tmp_path):
    root = cells(tmp_path, {"A": 0.3, "B": 0.7, "C": 0.7, "C_oracle": 0.7, "B_placebo": 0.7})
    path = designed(
        root,
        planned("C_oracle", "C", role="positive control"),
        planned("B_placebo", "A", role="placebo"),
    )
    document = build_document((root / "cells",), path)
    items = verdict_items(document)
    assert items[0].startswith("The assay did not fire: C_oracle − C: not resolved")
    assert "says nothing" in items[0]
    assert items[1].startswith("The placebo fired, too: B_placebo − A: B_placebo is better (+")
    assert document.sections[0].blocks[0].text.startswith("The assay cannot be trusted: ")


@pytest.mark.parametrize(
    ("rates", "headline"),
    [
        ({"C_oracle": 0.7, "B_placebo": 0.3}, "The assay did not fire. Nothing is claimed"),
        ({"C_oracle": 0.9, "B_placebo": 0.7}, "The assay cannot be trusted"),
        ({"C_oracle": 0.9, "B_placebo": 0.3}, "The assay fired. "),
    ],
)
@pytest.mark.parametrize("is_planned", [True, False])
def test_where_the_assay_did_not_fire_nothing_else_is_claimed(
    tmp_path, rates, headline, is_planned
):
    root = cells(tmp_path, {"A": 0.3, "B": 0.7, "C": 0.7, **rates})
    path = designed(
        root,
        planned("B", "A"),
        planned("C_oracle", "C", role="positive control"),
        planned("B_placebo", "A", role="placebo"),
    )
    document = build_document((root / "cells",), path if is_planned else None)
    verdict = document.sections[0]
    assert verdict.blocks[0].text.startswith(headline)
    claims = [one for one in verdict_items(document) if "B − A" in one or "B is better" in one]
    tables = [one for one in verdict.blocks if isinstance(one, Table)]
    fired = headline.startswith("The assay fired")
    assert bool(claims or tables) == fired
    assert "differences_success" in {one.name for one in document.blocks() if hasattr(one, "name")}


def test_a_control_that_may_still_fire_claims_nothing_yet(tmp_path):
    root = cells(tmp_path, {"A": 0.3, "B": 0.7, "C": 0.7, "C_oracle": 0.7})
    for seed in range(2, NUM_SEEDS):
        for folder in (root / "cells" / "main").glob(f"*_seed{seed}"):
            shutil.rmtree(folder)
    path = designed(root, planned("B", "A"), planned("C_oracle", "C", role="positive control"))
    document = build_document((root / "cells",), path)
    assert document.sections[0].blocks[0].text.startswith("The assay has not fired so far. ")


def test_the_arm_that_is_told_the_true_state_is_held_against_b(tmp_path):
    root = cells(tmp_path, {"A": 0.3, "B": 0.5, "C": 0.8, "C_privileged": 0.8})
    items = verdict_items(build_document((root / "cells",)))
    assert starting(items, "The assay fired: C_privileged − B: C_privileged is better")


@pytest.mark.parametrize("cue", [{"goals": "side", "frames": 8}, None])
def test_on_a_recording_with_a_cue_the_arm_that_remembers_it_is_a_positive_control(tmp_path, cue):
    rendering = {"image_size": 48, **({"cue": cue} if cue else {})}
    for seed in range(4):
        for number, (arm, history, rate) in enumerate(
            [("A", 0, 0.5), ("B", 0, 0.5), ("C", 8, 0.95), ("C_shuffled", 8, 0.5)]
        ):
            world = World(num_rollouts=120)
            world.rng = np.random.default_rng([seed, number])
            model, _, control = arm.partition("_")
            flags = {"token_control": control or "none", "data": {"rendering": rendering}}
            flags |= {"world_history": history} if history else {}
            folder = tmp_path / f"{arm}_{seed}"
            sums = world.error_sums(0.0, 0.0, 0.001)
            path = write_run(folder / "train", world, model, seed, sums, **flags)
            write_rollouts(folder / "rollouts", world, [path], [rate], seed_noise=0.05)
    items = verdict_items(build_document((tmp_path,)))
    if cue:
        assert starting(items, "The assay fired: C (world_history 8) − A: C (world_history 8) is b")
    else:
        assert starting(items, "Did the assay fire? No positive control was run")
    assert starting(items, "The placebo did not fire: C_shuffled (world_history 8) − B: ")


def test_without_a_plan_controls_are_compared_with_their_references(tmp_path, matrix):
    root = cells(tmp_path, {"A": 0.3, "B": 0.7, "C": 0.7, "C_oracle": 0.9, "B_placebo": 0.3})
    items = verdict_items(build_document((root / "cells",)))
    assert starting(items, "The assay fired: C_oracle − C: C_oracle is better")
    assert starting(items, "The placebo did not fire: B_placebo − A: not resolved")
    assert starting(items, "By success rate, the first arm of each pair is better: B − A")
    bare = verdict_items(build_document((matrix,)))
    assert bare[0].startswith("Did the assay fire? No positive control was run")
    assert bare[1] == "No placebo was run."


def test_a_look_knows_only_the_seeds_of_its_round(experiment, tmp_path):
    root, path = experiment
    evidence = collect_evidence([root / "cells"])
    design = read_design(path)
    early = {r.contrast.name: r.course for r in planned_results(design, root, evidence, 1)}
    late = {r.contrast.name: r.course for r in planned_results(design, root, evidence)}
    assert {course.num_seeds for course in early.values()} == {2}
    assert all(late[name].looks[0] == course.looks[0] for name, course in early.items())
    # Seeds that are not there yet change nothing of the looks before them.
    for folder in (root / "cells" / "main").glob("*_seed5"):
        shutil.rmtree(folder)
    fewer = planned_results(design, root, collect_evidence([root / "cells"]))
    for one in fewer:
        assert one.course.looks == late[one.contrast.name].looks[: len(one.course.looks)]


def test_arms_that_are_others_to_the_last_bit_are_one_question(tmp_path):
    rates = {"B": 0.7, "C": 0.6}
    root = cells(tmp_path, rates)
    for seed in range(NUM_SEEDS):
        folder = root / "cells/main"
        twin = shutil.copytree(folder / f"b_seed{seed}", folder / f"c_no_world_input_seed{seed}")
        path = twin / "train" / "config.json"
        config = json.loads(path.read_text("utf-8"))
        write_json(path, {**config, "model_type": "B", "log_dir": str(twin), "weight_decay": 0.5})
    pairs = [planned("C", name, "action_error", 5.0) for name in ("B", "C_no_world_input")]
    design = designed(root, *pairs)
    document = build_document((root / "cells",), design)
    rows = block(document, Table, "answers").rows
    assert rows[1][2] == f"{rows[0][2]}, as C − B, whose arms these are to the last bit"
    assert rows[1][3] == rows[0][3]
    assert document.sections[1].blocks[0].text.endswith("over all looks and 1 contrast.")


def test_b_under_another_name_is_no_hypothesis(matrix):
    """What C − B asks is asked once: the family has two members, not three."""
    for seed in range(3):
        name = "eval_offline_model_{}_epoch1/eval_offline.json"
        of_b = json.loads((matrix / f"b_{seed}" / name.format("B")).read_text("utf-8"))
        path = matrix / f"c_no_world_input_{seed}" / name.format("C_no_world_input")
        content = json.loads(path.read_text("utf-8"))
        write_json(path, {**content, "episodes": of_b["episodes"]})
    evidence = collect_evidence([matrix])
    results = {r.contrast.name: r for r in compare_arms(ACTION_ERROR, evidence, evidence.main)}
    check = results["C − C_no_world_input"]
    assert check.is_identity_check
    assert check.identical_arms
    assert check.holm_p is None
    assert {r.family_size for r in results.values()} == {2}
    rows = {
        row[0]: row
        for row in block(build_document((matrix,)), Table, "differences_action_mse").rows
    }
    assert (
        rows["C − C_no_world_input"][-1] == "identity check: C_no_world_input is B to the last bit"
    )
    assert rows["C − C_no_world_input"][-2] == "–"
    (matrix / "b_0" / "metrics.jsonl").unlink()
    for seed in (1, 2):
        shutil.rmtree(matrix / f"b_{seed}")
    alone = collect_evidence([matrix])
    kept = {r.contrast.name: r for r in compare_arms(SUCCESS, alone, alone.main)}
    assert not kept["C − C_no_world_input"].is_identity_check


def test_every_horizon_has_its_lead_over_the_bigram(matrix):
    for path in matrix.glob("c_*/eval_offline_model_C_epoch1/eval_offline.json"):
        content = json.loads(path.read_text("utf-8"))
        for subset in content["world"].values():
            subset[1]["model_minus_bigram"] = {
                **{"value": 0.21, "low": 0.2, "high": 0.22, "num_episodes": 20}
            }
        write_json(path, content)
    found = block(build_document((matrix,)), Table, "token_horizons")
    assert found.header == ("predictor", "k = 1", "k = 2")
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["C"] == ("80.0", "80.0")
    assert rows["bigram"] == ("80.0", "80.0")
    assert rows["C minus bigram"] == ("0.0", "+21.0")
    assert rows["B minus bigram"] == ("0.0", "0.0")


def test_checkpoints_are_counted_once_and_correlated_by_arm_and_settings(matrix):
    world = World(seed=5)
    for seed in range(3):
        # Arm A, which no future-token flag changes, is in this group, too.
        sums = world.error_sums(0.01, 0.0)
        path = write_run(matrix / f"far_{seed}", world, "B", seed, sums, future_stride=4)
        write_rollouts(matrix / f"far_rollouts_{seed}", World(seed=seed), [path], [0.5])
    document = build_document((matrix,))
    rows = {row[0]: row for row in block(document, Table, "offline_online").rows}
    assert rows["action MSE"][1:3] == ("15", "5")
    assert len(block(document, Figure, "offline_online").rows) == 15
    # 45 checkpoints of three caches have three values of this, from which no interval follows.
    assert "too few distinct values" in rows["world-token top-1 at k = 1"][-1] or (
        rows["world-token top-1 at k = 1"][3] == "–"
    )


def test_held_out_episodes_vary_within_their_tasks(matrix):
    evidence = collect_evidence([matrix])
    plain = arm_mean(ACTION_ERROR, evidence, evidence.main.runs_of("B"))
    for path in matrix.glob("*/eval_offline_*/eval_offline.json"):
        content = json.loads(path.read_text("utf-8"))
        means = np.array(content["episodes"]["squared_error_sum"])
        means = means / np.array(content["episodes"]["num_steps"])
        content["episodes"]["task_index"] = (means > np.median(means)).astype(int).tolist()
        write_json(path, content)
    evidence = collect_evidence([matrix])
    by_task = arm_mean(ACTION_ERROR, evidence, evidence.main.runs_of("B"))
    assert by_task.value == plain.value
    assert by_task.interval.high - by_task.value < 0.8 * (plain.interval.high - plain.value)


def test_c_minus_b_is_explained_with_what_bounds_it(matrix):
    caution = build_document((matrix,)).sections[0].blocks[-1].text
    assert "the nearest centroid of the embedding that B reads, too" in caution
    for path in matrix.glob("*/config.json"):
        config = json.loads(path.read_text("utf-8"))
        write_json(path, {**config, "context_frames": 4})
    assert "nearest centroid" not in build_document((matrix,)).sections[0].blocks[-1].text


def test_the_tidy_tables_alone_give_the_answers_of_the_page(experiment, tmp_path, capsys):
    root, design = experiment
    document = run(ReportConfig((root / "cells",), tmp_path / "report", design))
    shutil.rmtree(root / "cells")
    data = tmp_path / "report" / "data"
    lines = from_tables.run(
        TidyConfig((data / "success.csv", data / "action_error.csv"), data / "design.json")
    )
    looks = block(document, Table, "looks").rows
    said = [line for line in lines if " after " in line]
    assert len(said) == len(looks)
    for pair, measure, seeds, difference, claim in looks:
        text = starting(said, f"{pair} ({measure}) after {seeds} seeds: {claim}")
        plain = difference.replace("−", "-").replace("+", "").replace(" [", " % [")
        assert text.endswith(plain)


def test_tidy_tables_have_a_row_an_episode_and_arm(matrix, tmp_path):
    path = matrix / "rollouts_0" / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines[0] |= {"success": None, "error": "the simulator crashed"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(ReportConfig((matrix,), tmp_path / "report"))
    with (tmp_path / "report/data/success.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Three contrasts of two arms with three seeds in 30 layouts.
    assert len(rows) == 3 * 2 * 3 * 30
    assert set(rows[0]) == {"contrast", "seed", "task", "layout", "arm", "success", "steps"}
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    assert {row["success"] for row in rows} == {"0", "1", ""}
    estimates = from_tables.read_tables([tmp_path / "report/data/success.csv"])
    evidence = collect_evidence([matrix])
    for result in compare_arms(SUCCESS, evidence, evidence.main):
        again = estimates[result.contrast.name, "success"].difference()
        assert again.value == pytest.approx(result.estimate.value)
        assert math.isclose(again.error.value, result.estimate.error.value)


def test_the_seal_finds_a_changed_table_and_names_every_input(matrix, tmp_path):
    run(ReportConfig((matrix,), tmp_path / "report"))
    data = tmp_path / "report" / "data"
    check = ["sha256sum", "--quiet", "-c"]
    assert subprocess.run([*check, "SHA256SUMS"], cwd=data).returncode == 0
    assert subprocess.run([*check, "inputs.sha256"], cwd=data).returncode == 0
    listed = (data / "inputs.sha256").read_text("utf-8")
    for name in ("a_0/config.json", "c_2/model_C_epoch1.pt", "rollouts_1/results.jsonl"):
        assert f"{matrix / name}\n" in listed
    assert json.loads((data / "versions.json").read_text("utf-8"))["analysis"]["numpy"]
    table = data / "success.csv"
    table.write_text(table.read_text("utf-8").replace(",1,60", ",0,60", 1))
    changed = subprocess.run([*check, "SHA256SUMS"], cwd=data, capture_output=True, text=True)
    assert changed.returncode == 1
    assert "success.csv: FAILED" in changed.stdout


def test_tables_that_are_none_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="name at least one table"):
        TidyConfig(())
    with pytest.raises(MissingFileError, match=r"no table .*world_modality.report writes it"):
        from_tables.run(TidyConfig((tmp_path / "none.csv",)))
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidInputError, match="no column success or squared_error_sum"):
        from_tables.run(TidyConfig((other,)))


def test_a_report_of_a_design_that_is_not_there_says_what_writes_it(matrix, tmp_path):
    command = [sys.executable, "-m", "world_modality.report", str(matrix)]
    command += ["--out_dir", str(tmp_path / "out"), "--design", str(tmp_path / "design.json")]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "world_modality.experiment writes it at its first look" in failed.stderr
