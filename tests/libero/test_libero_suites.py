import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.libero import suites
from benchmarks.libero.environment import LiberoRendering
from benchmarks.libero.eval_libero_success import EvalLiberoConfig, suite_for
from benchmarks.libero.simulator import (
    IMAGE_KEY,
    IMAGE_KEYS,
    WRIST_IMAGE_KEY,
    LiberoSuite,
    evaluation_episodes,
)
from benchmarks.libero.suites import (
    complete_suites,
    find_task,
    load_initial_states,
    max_episode_steps,
    resolve_suite,
    select_tasks,
    suite_tasks,
)
from tests.fixtures.policy import tiny_policy_config
from world_modality.policy.checkpoint import Checkpoint, save_checkpoint
from world_modality.policy.config import TrainConfig
from world_modality.system.errors import InvalidInputError, MissingKeyError

LIBERO = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
PERTURBED = ("lan", "object", "swap", "task")


def test_every_suite_of_libero_and_four_perturbations_of_each_are_complete():
    complete = set(complete_suites())
    assert complete >= set(LIBERO)
    assert complete >= {f"{suite}_{kind}" for suite in LIBERO[:4] for kind in PERTURBED}
    assert complete < set(suites._task_maps())
    for suite in LIBERO:
        assert len(suite_tasks(suite)) == (90 if suite == "libero_90" else 10)


def test_tasks_come_in_liberos_order_with_its_instructions():
    tasks = suite_tasks("libero_10")
    assert tasks[0].name == (
        "LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket"
    )
    assert [task.instruction for task in tasks[:3]] == [
        "put both the alphabet soup and the tomato sauce in the basket",
        "put both the cream cheese box and the butter in the basket",
        "turn on the stove and put the moka pot on it",
    ]
    for task in tasks:
        assert task.bddl_path.is_file()
        assert len(load_initial_states(task)) == 50


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("libero_object", "pick up the alphabet soup and place it in the basket"),
        ("libero_object_swap", "pick up the alphabet soup and place it in the basket"),
        ("libero_object_lan", "grab alphabet soup and put it into basket"),
        ("libero_object_task", "Pick the cream cheese and place it in the basket"),
        ("libero_object_with_mug", "pick the alphabet soup and place it in the basket"),
    ],
)
def test_instruction_is_the_definitions_where_the_suite_perturbs_it(suite, expected):
    assert suite_tasks(suite)[0].instruction == expected


def test_instructions_of_a_suite_are_distinct_texts():
    for suite in ("libero_spatial", "libero_goal_lan", "libero_10_task", "libero_study_table"):
        texts = [task.instruction for task in suite_tasks(suite)]
        assert len(set(texts)) == len(texts)
        assert all(text.strip() == text != "" for text in texts)


def test_suites_may_be_named_without_libero_and_unknown_names_list_the_nearest_first():
    names = ["10", "object_lan", "libero_goal"]
    assert [resolve_suite(name) for name in names] == [
        "libero_10",
        "libero_object_lan",
        "libero_goal",
    ]
    with pytest.raises(MissingKeyError, match="'libero_objects' in LIBERO; there are: libero_obje"):
        resolve_suite("libero_objects")
    with pytest.raises(MissingKeyError, match="there are: libero_object,"):
        suite_tasks("libero_objects")
    with pytest.raises(MissingKeyError, match="in libero_goal; there are: turn_on_the_stove"):
        find_task("libero_goal", "turn_on_stove")


@pytest.mark.parametrize(
    ("suite", "lacking"),
    [
        ("libero_object_env", "the definition of pick_up_the_alphabet_soup"),
        ("libero_10_with_milk", "initial states of FLOOR_SCENE1_put_both"),
        ("libero_goal_with_green_mug", "libero_mug_green.xml"),
    ],
)
def test_incomplete_suite_says_what_is_missing_and_which_are_complete(suite, lacking):
    with pytest.raises(InvalidInputError, match=f"lacks files of {suite}: .*{lacking}") as raised:
        suite_tasks(suite)
    assert "complete suites are libero_spatial, " in str(raised.value)


def test_task_of_an_incomplete_suite_can_be_played_if_it_is_complete_itself():
    suite = "libero_10_with_milk"
    playable = [task for task in suites._all_tasks(suite) if not suites._missing_files([task])]
    assert len(playable) == 8
    assert select_tasks(suite, [playable[0].name]) == (playable[0],)


def test_tasks_are_selected_by_name_and_by_number():
    tasks = suite_tasks("libero_object")
    assert select_tasks("libero_object", ()) == tasks
    assert select_tasks("libero_object", ("6", tasks[2].name)) == (tasks[6], tasks[2])
    with pytest.raises(MissingKeyError, match="'10' in libero_object"):
        select_tasks("libero_object", ("10",))
    with pytest.raises(InvalidInputError, match="distinct"):
        select_tasks("libero_object", ("0", tasks[0].name))


def test_standard_limits_are_those_of_the_suite_that_is_perturbed():
    assert [max_episode_steps(suite) for suite in LIBERO] == [280, 280, 300, 520, 400]
    assert max_episode_steps("libero_10_swap") == 520
    assert max_episode_steps("libero_goal_with_mug") == 300
    assert max_episode_steps("libero_study_table") == 500


def test_the_table_is_read_without_the_simulator():
    program = (
        "import sys\n"
        "from benchmarks.libero.suites import suite_tasks\n"
        "from benchmarks.libero.simulator import LiberoSuite\n"
        "suite_tasks('libero_goal')\n"
        "print([name for name in ('robosuite', 'mujoco', 'torch') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_episodes_start_in_the_stored_states_one_after_the_other():
    tasks = select_tasks("libero_goal", ("3", "1"))
    episodes = evaluation_episodes(tasks, 4, seed=5, max_steps=300)
    assert [(e.task, e.instruction) for e in episodes[::4]] == [
        (task.name, task.instruction) for task in tasks
    ]
    assert [e.initial_state for e in episodes] == [0, 1, 2, 3] * 2
    assert [e.episode for e in episodes] == [0, 1, 2, 3] * 2
    assert {(e.seed, e.max_steps) for e in episodes} == {(5, 300)}
    assert evaluation_episodes(tasks[1:], 2, seed=5, max_steps=300) == episodes[4:6]


def test_more_episodes_than_stored_states_are_refused():
    with pytest.raises(InvalidInputError, match=r"51: the benchmark has 50 .*--n_trials 50 or"):
        evaluation_episodes(select_tasks("libero_goal", ("0",)), 51, seed=0, max_steps=300)


def write_checkpoint(path: Path, image_key: str, recording: dict | None) -> Path:
    dataset = {"name": "local/libero", "image_key": image_key, "recording": recording}
    checkpoint = Checkpoint(
        policy_config=tiny_policy_config("A"),
        train_config=TrainConfig("local/libero"),
        epoch=0,
        global_step=0,
        model={},
        training_state={},
        manifest={"dataset": dataset},
        cache_fingerprint="",
        cache_arrays={},
    )
    save_checkpoint(path, checkpoint)
    return path


def libero_recording(suite: str, rendering: LiberoRendering) -> dict:
    return {"suite": {"name": suite}, "rendering": rendering.record()}


def test_policies_are_rolled_out_with_the_rendering_of_their_recording(tmp_path, capsys):
    rendering = LiberoRendering(image_size=96, reflections=True)
    recording = libero_recording("libero_object", rendering)
    path = write_checkpoint(tmp_path / "a.pt", IMAGE_KEY, recording)
    suite = suite_for(path, "libero_object_swap")
    assert suite == LiberoSuite("libero_object_swap", rendering)
    assert suite.image_keys == IMAGE_KEYS
    assert suite.observing([IMAGE_KEY]) == LiberoSuite(suite.name, rendering, (IMAGE_KEY,))
    public = write_checkpoint(tmp_path / "public.pt", WRIST_IMAGE_KEY, None)
    suite = suite_for(public, "libero_goal")
    assert suite == LiberoSuite("libero_goal", LiberoRendering.lerobot())
    assert "public.pt records no rendering" in capsys.readouterr().out


def test_policies_of_another_simulator_are_refused(tmp_path):
    recording = {"suite": {"name": "metaworld"}, "rendering": {}}
    path = write_checkpoint(tmp_path / "a.pt", "observation.image", recording)
    with pytest.raises(InvalidInputError, match="a recording of metaworld, not of libero"):
        suite_for(path, "libero_object")


def test_evaluation_gets_the_suites_limit_and_all_its_tasks(tmp_path, monkeypatch):
    import benchmarks.rollouts.evaluation as evaluation
    from benchmarks.libero.eval_libero_success import run

    calls = []
    monkeypatch.setattr(evaluation, "evaluate", lambda *arguments: calls.append(arguments) or {})
    recording = libero_recording("libero_object", LiberoRendering())
    path = write_checkpoint(tmp_path / "a.pt", IMAGE_KEY, recording)
    config = EvalLiberoConfig(checkpoint=(path,), benchmark="object", n_trials=3)
    run(config)
    run(dataclasses.replace(config, benchmark="goal", tasks=("2",), max_steps=7))
    (suite, episodes, passed), (other_suite, few, _) = calls
    assert (suite.name, other_suite.name) == ("libero_object", "libero_goal")
    assert passed == config
    assert len(episodes) == 30
    assert {episode.max_steps for episode in episodes} == {280}
    assert [(e.task, e.max_steps) for e in few] == [(suite_tasks("libero_goal")[2].name, 7)] * 3
