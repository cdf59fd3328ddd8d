"""An experiment that names contrasts: its rounds, its looks, and what may change between them."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.fixtures.verdict import World, write_rollouts, write_run
from world_modality.arms import ARMS, contrasts_between
from world_modality.experiment import ExperimentConfig, run
from world_modality.matrix.experiment_file import read_matrix
from world_modality.matrix.jobs import cell_jobs, report_step
from world_modality.matrix.rounds import design_of, seeds_of_round
from world_modality.matrix.runner import Failure, Runner, _record, is_done
from world_modality.report import ReportConfig
from world_modality.report import run as run_report
from world_modality.system.errors import InvalidInputError, MissingKeyError, UserError

DESIGN: dict[str, Any] = {
    "out_dir": "out",
    "dataset_name": "synthetic/demo",
    "caches": {"main": {"vision_model_name": "pixel-pca"}},
    "train": {"num_epochs": 2},
    "cells": [{"arms": ["A", "B", "C"]}, {"arms": ["B_placebo"], "seeds": [7]}],
    "rollouts": {"stage": "benchmarks.metaworld.eval_metaworld_success", "flags": {"n_trials": 3}},
    "contrasts": [
        {"first": "B", "second": "A"},
        {"first": "C", "second": "B", "measure": "action_error", "margin": 8},
    ],
    "max_seeds": 6,
    "seeds_per_round": 2,
}
RATES = {"A": 0.2, "B": 0.75, "C": 0.75, "B_placebo": 0.3}


@pytest.fixture
def design_file(tmp_path):
    def write(**changes):
        content = copy.deepcopy(DESIGN) | {"out_dir": str(tmp_path / "out")} | changes
        path = tmp_path / "experiment.yaml"
        path.write_text(
            yaml.safe_dump({name: value for name, value in content.items() if value is not None})
        )
        return path

    return write


def finish(job):
    """Leave what a job that ended well leaves."""
    for step in job.steps:
        step.produces.parent.mkdir(parents=True, exist_ok=True)
        step.produces.touch()
        _record(job, step)


class Machine:
    """Stands in for the runner's processes: each cell has outcomes of its own, whenever it runs."""

    def __init__(self, monkeypatch, rates=RATES, errors=None):
        self.rates, self.errors, self.ran, self.broken = rates, errors or {}, [], set()
        self.twins = {}
        self.stop_before, self.reports = None, False
        monkeypatch.setattr(Runner, "run", lambda _, jobs: self.run(jobs))

    def run(self, jobs):
        failures = []
        for job in jobs:
            if is_done(job):
                continue
            if job.name == self.stop_before:
                raise KeyboardInterrupt
            self.ran.append(job.name)
            if job.name in self.broken:
                failures.append(Failure(job.name, "python", 1, job.folder / "log.txt", ()))
                continue
            self.cell(job)
            finish(job)
        return failures

    def cell(self, job):
        if job.name == "report" and not self.reports:
            (job.steps[0].produces.parent).mkdir(parents=True, exist_ok=True)
            (job.steps[0].produces.parent / "summary.md").touch()
        elif job.name == "report":
            words = list(job.steps[0].arguments[2:])
            folders = [Path(one) for one in words[: words.index("--out_dir")]]
            design = Path(words[words.index("--design") + 1]) if "--design" in words else None
            out_dir = job.steps[0].produces.parent
            run_report(ReportConfig(tuple(folders), out_dir, design))
        elif job.name.startswith("main"):
            arm, seed = self.arm_of(job.name)
            world, sums = self.world(job.name)
            arguments = job.steps[0].arguments
            flags = dict(zip(arguments[1::2], arguments[2::2], strict=False))
            control = {"token_control": ARMS[arm].control}
            for name in ("world_history", "context_frames"):
                control |= {name: int(flags[f"--{name}"])} if f"--{name}" in flags else {}
            model_type = ARMS[arm].model_type
            (checkpoint,) = (step.produces for step in job.steps if step.produces.suffix == ".pt")
            written = write_run(checkpoint.parent, world, model_type, seed, sums, **control)
            assert written == checkpoint
        for step in job.steps:
            if step.produces.name == "summary.json":
                self.rollouts(step)

    def rollouts(self, step):
        words = list(step.arguments)
        checkpoints = [
            Path(one) for one in words[words.index("--checkpoint") + 1 : words.index("--out_dir")]
        ]
        lines = []
        for checkpoint in checkpoints:
            name = "/".join(
                folder.name for folder in (checkpoint.parents[2], checkpoint.parents[1])
            )
            world, _ = self.world(name)
            rate = self.rates[self.arm_of(name)[0]]
            path = write_rollouts(
                step.produces.parent, world, [checkpoint], [rate], seed_noise=0.05
            )
            lines.append(path.read_text("utf-8"))
        path.write_text("".join(lines), "utf-8")

    @staticmethod
    def arm_of(name):
        """Return arm and seed of a cell."""
        arm, seed = name.split("/")[1].rsplit("_seed", 1)
        return next(one for one in ARMS if one.lower() == arm), int(seed)

    def world(self, name):
        """Return the world of a cell, and the errors that it drew there."""
        arm, seed = self.arm_of(name)
        world = World(num_rollouts=120)
        variant = name.split("/")[0].removeprefix("main")
        drawn_by = self.twins.get(arm, arm) + variant
        world.rng = np.random.default_rng([seed, sum(map(ord, drawn_by))])
        shift = 0.004 * world.rng.normal()
        return world, world.error_sums(self.errors.get(arm, 0.0), shift, 0.001)


def pages(out_dir):
    return {
        path.relative_to(out_dir): path.read_text("utf-8").split("\n\n", 2)[2]
        for path in out_dir.glob("report/*.md")
    }


def test_arms_are_trained_round_by_round_and_a_closed_contrast_stops(
    design_file, monkeypatch, capsys
):
    machine = Machine(monkeypatch)
    run(ExperimentConfig(design_file()))
    rounds = [name for name in machine.ran if name.startswith("main/")]
    assert rounds[0] == "main/b_placebo_seed7"
    assert rounds[1:7] == [f"main/{arm}_seed{seed}" for seed in (0, 1) for arm in "bac"]
    printed = capsys.readouterr().out
    assert "after 4 seeds: B − A: B is better (+5" in printed
    # B − A is closed after four seeds, C − B after all six, or never.
    assert rounds[7:] == [f"main/{arm}_seed{seed}" for seed in (2, 3) for arm in "bac"] + [
        f"main/{arm}_seed{seed}" for seed in (4, 5) for arm in "cb"
    ]
    assert "round 3: 4 cells, up to 6 seeds" in printed
    assert machine.ran[-1] == "report"


def test_the_arms_of_a_seed_are_rolled_out_in_one_command(design_file):
    rollouts = {**DESIGN["rollouts"], "corruptions": ["stale:8"], "films": 2}
    matrix = read_matrix(design_file(rollouts=rollouts))
    seeds = seeds_of_round(matrix, 0, list(design_of(matrix).margins))
    assert seeds[0].rollouts() is None, "nothing is trained"
    for job in [*seeds[0].trainings, *seeds[1].trainings]:
        finish(job)
    jobs = [seed.rollouts() for seed in seeds]
    assert [job.name for job in jobs] == [
        f"rollouts of compared arms, seed {seed}" for seed in (0, 1)
    ]
    clean, stale = jobs[0].steps
    checkpoints = [f"{arm}_seed0/train/model_{arm.upper()}_epoch1.pt" for arm in "bac"]
    cells = matrix.out_dir / "cells"
    named = " ".join(str(cells / "main" / one) for one in checkpoints)
    assert f"--checkpoint {named} --out_dir {cells}/compared_arms_seed0/rollouts " in clean.shell
    assert "--save_videos" in clean.shell
    assert "--save_videos" not in jobs[1].steps[0].shell
    assert f"--checkpoint {cells / 'main' / checkpoints[2]} --out_dir" in stale.shell
    assert "--corrupt_world stale:8" in stale.shell
    # A cell that a job array has run is not rolled out again.
    finish(seeds[0].whole_cells[1])
    assert "a_seed0" not in seeds[0].rollouts().steps[0].shell


def test_an_experiment_ends_when_every_contrast_is_closed(design_file, monkeypatch):
    machine = Machine(monkeypatch)
    run(ExperimentConfig(design_file(contrasts=[{"first": "B", "second": "A"}])))
    assert "main/b_seed3" in machine.ran
    assert "main/b_seed4" not in machine.ran
    # C is a cell that no contrast names: it has the seeds of the first round.
    assert [name for name in machine.ran if "/c_" in name] == ["main/c_seed0", "main/c_seed1"]


def test_arms_that_are_others_to_the_last_bit_are_trained_for_the_first_look_alone(
    design_file, monkeypatch, capsys
):
    machine = Machine(monkeypatch, {**RATES, "C_no_world_input": RATES["B"]})
    machine.twins = {"C_no_world_input": "B"}
    contrasts = [{"first": "C", "second": name} for name in ("B", "C_no_world_input")]
    cells = [{"arms": ["B", "C", "C_no_world_input"]}]
    run(ExperimentConfig(design_file(contrasts=contrasts, cells=cells)))
    assert "main/c_seed5" in machine.ran, "C − B stays open to the end"
    trained = [name for name in machine.ran if name.startswith("main/c_no_world_input")]
    assert trained == ["main/c_no_world_input_seed0", "main/c_no_world_input_seed1"]


@pytest.mark.parametrize(
    "stop_before", ["main/a_seed1", "rollouts of compared arms, seed 1", "main/b_seed2", "report"]
)
def test_killed_anywhere_and_started_again_it_ends_with_the_same_page(
    design_file, monkeypatch, tmp_path, stop_before
):
    machine = Machine(monkeypatch)
    machine.reports = True
    run(ExperimentConfig(design_file()))
    whole, ran = pages(tmp_path / "out"), machine.ran
    (tmp_path / "out").rename(tmp_path / "uninterrupted")
    machine.ran, machine.stop_before = [], stop_before
    with pytest.raises(KeyboardInterrupt):
        run(ExperimentConfig(design_file()))
    machine.stop_before = None
    run(ExperimentConfig(design_file()))
    assert machine.ran == ran
    assert pages(tmp_path / "out") == whole


def test_a_round_that_failed_in_part_is_not_looked_at(design_file, monkeypatch, tmp_path, capsys):
    machine = Machine(monkeypatch)
    machine.broken = {"main/a_seed1"}
    machine.reports = True  # one is written all the same, on what there is
    with pytest.raises(UserError, match="failed: main/a_seed1"):
        run(ExperimentConfig(design_file()))
    assert "after 2 seeds" not in capsys.readouterr().out
    assert not [name for name in machine.ran if "seed2" in name]
    machine.broken = set()
    run(ExperimentConfig(design_file()))
    assert "after 2 seeds: B − A" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seeds": 8}, "max_seeds is 8 and was 6"),
        ({"seeds_per_round": 3}, "seeds_per_round is 3 and was 2"),
        ({"error_share": 0.1}, "error_share is 0.1 and was 0.05"),
        ({"train": {"num_epochs": 3}}, 'train is {"num_epochs": 3} and was {"num_epochs": 2}'),
        (
            {"contrasts": [{"first": "B", "second": "A", "margin": 4}]},
            r"contrast B − A \(success\) is within 4 points of success and was within 3 points",
        ),
        (
            {"contrasts": DESIGN["contrasts"] + [{"first": "C", "second": "A"}]},
            r"contrast C − A \(success\) is within 3 points of success and was not there",
        ),
        (
            {"rollouts": {**DESIGN["rollouts"], "flags": {"n_trials": 4}}},
            'rollouts.flags is {"n_trials": 4} and was',
        ),
        ({"caches": {"main": {"vq_num_tokens": 9}}}, "caches.main is"),
        ({"prepare": [{"stage": "x"}]}, 'prepare is .{"flags": {}, "stage": "x"}. and was ..'),
        (
            {"contrasts": None, "max_seeds": None, "seeds_per_round": None, "seeds": [0]},
            "names no contrasts any more, but was looked at",
        ),
    ],
)
def test_what_is_asked_may_not_change_once_it_was_looked_at(
    design_file, monkeypatch, changes, message
):
    machine = Machine(monkeypatch)
    run(ExperimentConfig(design_file(contrasts=DESIGN["contrasts"])))
    machine.ran = []
    with pytest.raises(InvalidInputError, match=message) as raised:
        run(ExperimentConfig(design_file(**changes)))
    assert "another out_dir" in str(raised.value)
    assert machine.ran == []


@pytest.mark.parametrize(
    "changes",
    [
        {"rollouts": {**DESIGN["rollouts"], "films": 2, "corruptions": ["task"]}},
        {"rollouts": {**DESIGN["rollouts"], "flags": {"n_trials": 3, "env_num": 1}}},
        {"cells": [{"arms": ["A", "B", "C", "C_dummy"]}]},
        {"caches": {**DESIGN["caches"], "small": {"vq_num_tokens": 16}}},
    ],
)
def test_what_changes_no_outcome_of_a_contrast_may_change(design_file, monkeypatch, changes):
    matrix = read_matrix(design_file())
    assert design_of(matrix).changes(design_of(read_matrix(design_file(**changes)))) == []


def test_before_the_first_look_everything_may_change(design_file, monkeypatch, tmp_path):
    machine = Machine(monkeypatch)
    machine.broken = {"main/a_seed1"}
    with pytest.raises(UserError):
        run(ExperimentConfig(design_file()))
    assert not (tmp_path / "out" / "design.json").exists()
    machine.broken = set()
    run(ExperimentConfig(design_file(max_seeds=4)))
    kept = json.loads((tmp_path / "out" / "design.json").read_text("utf-8"))
    assert kept["plan"]["max_seeds"] == 4


def test_a_damaged_design_is_named(design_file, monkeypatch, tmp_path):
    Machine(monkeypatch)
    path = tmp_path / "out" / "design.json"
    path.parent.mkdir()
    path.write_text('{"plan": {}}')
    with pytest.raises(InvalidInputError, match=r"design.json is damaged .* delete it"):
        run(ExperimentConfig(design_file()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrasts": []}, "contrasts of .* at least one"),
        ({"contrasts": [{"first": "B", "second": "A", "margin": 0}]}, r"margin of .*: a margin ha"),
        ({"contrasts": [{"first": "B", "second": "A", "margin": "x"}]}, "has to be a number"),
        ({"contrasts": [{"first": "B"}]}, r"contrasts\[0\] of .* lacks second"),
        ({"contrasts": [{"first": "B", "second": "Z"}]}, "no arm .* train 'Z' .* there are: "),
        (
            {"contrasts": [{"first": "C_dummy", "second": "A"}]},
            "no arm that the cells train 'C_dummy' .* there are: ",
        ),
        ({"contrasts": [{"first": "B", "second": "B"}]}, "B − B compares an arm with itself"),
        (
            {"contrasts": [{"first": "B", "second": "A"}, {"first": "B", "second": "A"}]},
            "names contrast B − A twice, both by success",
        ),
        (
            {"contrasts": [{"first": "B", "second": "A", "measure": "speed"}]},
            "measure of .* has to be 'success' or 'action_error', not 'speed'",
        ),
        ({"rollouts": None, "contrasts": [{"first": "B", "second": "A", "measure": "success"}]},
         "asks for success, but B is not rolled out"),
        ({"max_seeds": None}, "names contrasts, but lacks max_seeds"),
        ({"max_seeds": 1}, "max_seeds has to be at least 2, not 1"),
        ({"seeds_per_round": 7}, "between 1 and max_seeds, which is 6, not 7"),
        ({"error_share": 0.0}, "error_share has to lie between 0 and 0.5"),
        ({"contrasts": None}, "names max_seeds and seeds_per_round, but no contrasts"),
        (
            {"cells": [{"arms": ["A", "B", "C"], "seeds": [0, 1]}]},
            r"the seeds of B are given twice: its cells name \[0, 1\], and contrast B − A trains",
        ),
        ({"seeds": [3, 3]}, "names a seed twice"),
        ({"cells": [{"arms": ["A"], "name": "a b"}]}, "letters, digits, _ and - alone, not 'a b'"),
        (
            {"cells": [{"arms": ["A", "B", "C"]}, {"arms": ["C"], "name": "shuffled"}]},
            "makes C_shuffled, which is another's label",
        ),
        (
            {"cells": [{"arms": ["A", "B", "C"]}, *[{"arms": ["C"], "name": "x"}] * 2]},
            "makes C_x, which is another's label",
        ),
    ],
)  # fmt: skip
def test_a_design_that_is_not_right_says_where_and_what_there_is(design_file, changes, message):
    error = MissingKeyError if message.startswith("no ") else InvalidInputError
    with pytest.raises(error, match=message):
        read_matrix(design_file(**changes))


VARIANTS = [
    {"arms": ["A", "C"]},
    {"arms": ["C", "C_shuffled"], "name": "history", "train": {"world_history": 8}},
    {"arms": ["A"], "name": "context", "train": {"context_frames": 9}},
]
OF_VARIANTS = [
    {"first": "C_history", "second": "A", "role": "positive control"},
    {"first": "C_history", "second": "A_context"},
    {"first": "C_shuffled_history", "second": "A"},
]


def test_a_contrast_names_variants_by_their_label(design_file):
    matrix = read_matrix(design_file(cells=VARIANTS, contrasts=OF_VARIANTS))
    design = design_of(matrix)
    folders = [(one.first_cell, one.second_cell) for one in design.contrasts]
    history, shuffled = (
        f"cells/main-world_history_8/{arm}_seed{{seed}}" for arm in ("c", "c_shuffled")
    )
    plain, context = "cells/main/a_seed{seed}", "cells/main-context_frames_9/a_seed{seed}"
    assert folders == [(history, plain), (history, context), (shuffled, plain)]
    assert [one.pair for one in design.contrasts][1] == "C_history − A_context"
    roles = [one.role for one in design.contrasts]
    assert roles == ["positive control", "question", "placebo"]
    assert "the cell of C_history" in design.trained_with
    seed = seeds_of_round(matrix, 0, list(design.margins))[0]
    assert {job.name.removesuffix("_seed0") for job in seed.trainings} == {
        "main-world_history_8/c",
        "main-world_history_8/c_shuffled",
        "main/a",
        "main-context_frames_9/a",
    }
    assert "main/c_seed0" in {job.name for job in cell_jobs(matrix)}, "of no contrast"


def test_the_page_answers_contrasts_of_variants_and_says_what_they_are(
    design_file, monkeypatch, tmp_path
):
    rates = {"A": 0.2, "C": 0.9, "C_shuffled": 0.2}
    machine = Machine(monkeypatch, rates)
    machine.reports = True
    path = design_file(cells=VARIANTS, contrasts=OF_VARIANTS, max_seeds=4)
    run(ExperimentConfig(path))
    page = next(iter(pages(tmp_path / "out").values()))
    assert "C_history − A_context" in page
    assert "C_history: C, world_history 8." in page
    assert "A_context: A, context_frames 9." in page
    (answers,) = (tmp_path / "out" / "report" / "tables").glob("answers.csv")
    rows = [line.split(",") for line in answers.read_text("utf-8").splitlines()[1:]]
    assert [row[2] for row in rows[:2]] == ["C_history is better"] * 2
    changed = copy.deepcopy(VARIANTS)
    changed[1]["train"]["world_history"] = 4
    with pytest.raises(InvalidInputError, match=r"the cell of C_history is .*4"):
        run(ExperimentConfig(design_file(cells=changed, contrasts=OF_VARIANTS, max_seeds=4)))


def test_a_variant_that_reads_a_history_is_compared_as_its_arm_is():
    history = "world_history 8"
    arms = {"A", "B", "C", f"C ({history})", f"C_shuffled ({history})", "C (scale 0.1)"}
    names = {one.name for one in contrasts_between(arms)}
    assert names == {
        *("B − A", "C − B", "C (scale 0.1) − C", f"C ({history}) − C"),
        *(f"C ({history}) − A", f"C ({history}) − B"),
        f"C ({history}) − C_shuffled ({history})",
    }


def test_without_rollouts_a_contrast_is_of_the_action_error(design_file):
    matrix = read_matrix(design_file(rollouts=None, contrasts=[{"first": "B", "second": "A"}]))
    (planned,) = design_of(matrix).contrasts
    assert (planned.measure, planned.margin) == ("action_error", 5.0)


def test_every_round_can_be_run_cell_by_cell(design_file):
    matrix = read_matrix(design_file())
    names = [job.name for job in cell_jobs(matrix)]
    assert len(names) == len(set(names)) == 1 + 3 * 6
    in_rounds = [
        job.name
        for number in range(3)
        for seed in seeds_of_round(matrix, number, list(design_of(matrix).margins))
        for job in seed.whole_cells
    ]
    assert names[1:] == in_rounds
    assert "--design" in report_step(matrix).arguments


def test_a_matrix_without_contrasts_has_no_rounds(design_file):
    path = design_file(contrasts=None, max_seeds=None, seeds_per_round=None, seeds=[0, 1])
    matrix = read_matrix(path)
    assert matrix.plan is None
    assert len(cell_jobs(matrix)) == 7
    assert "--design" not in report_step(matrix).arguments
    with pytest.raises(InvalidInputError, match="lacks seeds"):
        read_matrix(design_file(contrasts=None, max_seeds=None, seeds_per_round=None))
