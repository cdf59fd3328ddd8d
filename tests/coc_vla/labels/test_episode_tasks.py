import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coc_vla.coc_generation import run
from coc_vla.events.motion_columns import GripperChannel
from coc_vla.labels.episode_tasks import plan_tasks
from coc_vla.labels.record import read_labels, read_records
from tests.fixtures.chat_server import ChatServer, serving
from tests.fixtures.coc import of_server
from tests.fixtures.instruction import add_column
from tests.fixtures.lerobot import TASKS, make_dataset
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError, MissingKeyError


def instructions(config):
    return [label.instruction for label in read_labels(config.output_jsonl)]


def rewrite(root, part, column, change):
    """Change some rows of a column in the only file of a part of a dataset."""
    (path,) = root.glob(f"{part}/*/*.parquet")
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    values = table.column(column).to_pylist()
    change(values)
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)


def with_changed(root, copy, column, change):
    """Copy a dataset with some rows of a column of its frames changed."""
    shutil.copytree(root, copy)
    rewrite(copy, "data", column, change)
    return copy


@pytest.mark.parametrize("key", [None, "task", "instruction"])
def test_lerobots_task_is_the_instruction_under_its_documented_names(config, key):
    summary = run(replace(config, instruction_key=key))
    assert "task table" in summary.instruction_origin
    assert instructions(config)[1] == TASKS[1]


def test_a_column_of_that_name_comes_before_the_task_table(config, tmp_path):
    root = make_dataset(tmp_path / "own", num_episodes=2)
    add_column(root, "instruction", ["lift the cube"] * 12 + ["lower the cube"] * 13)
    run(replace(config, dataset_root=root, instruction_key="instruction", gripper_dim="none"))
    assert instructions(config) == ["lift the cube", "lower the cube"]


def test_a_wrong_key_lists_the_keys_nearest_first(config):
    with pytest.raises(MissingKeyError, match=r"'tasks' in .*there are: task, task_index.*--instr"):
        run(replace(config, instruction_key="tasks"))
    with pytest.raises(MissingKeyError, match=r"observation\.image"):
        run(replace(config, image_key="observation.imag"))
    assert not config.output_jsonl.exists()


def test_blank_instructions_are_errors_and_a_dataset_of_them_is_refused(config, tmp_path):
    root = make_dataset(tmp_path / "own", num_episodes=2)
    add_column(root, "text", [" "] * 12 + ["lift the cube"] * 13)
    config = replace(config, dataset_root=root, instruction_key="text", gripper_dim="none")
    summary = run(config)
    assert (summary.num_labels, summary.num_errors) == (1, 1)
    assert read_records(config.output_jsonl)[0].error == "the instruction is blank"
    add_column(root, "text", [""] * 25)
    with pytest.raises(InvalidInputError, match="none of 2 episodes has an instruction"):
        run(replace(config, overwrite=True))


def test_a_damaged_image_costs_only_its_own_episode(config, root, tmp_path):
    def change(images):
        images[12 + 6]["bytes"] = b"no image"  # the middle frame of episode 1

    copy = with_changed(root, tmp_path / "d", "observation.image", change)
    with serving(ChatServer()) as url:
        summary = run(of_server(config, url, dataset_root=copy))
    assert (summary.num_labels, summary.num_errors) == (5, 1)
    assert "frame 18" in read_records(config.output_jsonl)[1].error


def test_two_tasks_in_one_episode_are_noted(config, root, tmp_path):
    def change(tasks):
        tasks[5] = tasks[11] = 2  # within episode 0
        tasks[30] = 0  # within episode 2, which begins with frame 25

    def change_texts(texts):
        texts[0], texts[2] = [TASKS[0], TASKS[2]], [TASKS[2], TASKS[0]]

    copy = with_changed(root, tmp_path / "d", "task_index", change)
    rewrite(copy, "meta/episodes", "tasks", change_texts)
    summary = run(replace(config, dataset_root=copy))
    assert "(2 episodes have several; their first is taken)" in summary.instruction_origin
    assert instructions(config) == [*TASKS, *TASKS]


def test_a_task_within_an_episode_that_no_table_lists_is_refused(config, root, tmp_path):
    def change(tasks):
        tasks[5] = 9

    copy = with_changed(root, tmp_path / "d", "task_index", change)
    with pytest.raises(InvalidInputError, match=r"task_index .* values \[9\] .*tasks\.parquet"):
        run(replace(config, dataset_root=copy))


def test_commands_of_a_dataset_on_another_scale_are_refused_with_column_and_frames(
    config, root, tmp_path
):
    def change(actions):
        for action in actions:
            action[1] = 50.0 + 50 * action[1]

    copy = with_changed(root, tmp_path / "d", "action", change)
    with pytest.raises(InvalidInputError, match=r"-1 1: in dimension 1 of column action of .*0:12"):
        run(replace(config, dataset_root=copy))
    assert run(replace(config, dataset_root=copy, gripper_commands=(100.0, 0.0))).num_labels == 6


@pytest.mark.parametrize("keyframes", ["uniform", "events"])
def test_joint_angles_are_no_position_unless_they_are_asked_for(config, root, tmp_path, keyframes):
    copy = tmp_path / "d"
    shutil.copytree(root, copy)
    info = json.loads((copy / "meta" / "info.json").read_text("utf-8"))
    info["features"]["observation.state"]["names"] = ["joint_1", "joint_2", "joint_3", "joint_4"]
    (copy / "meta" / "info.json").write_text(json.dumps(info))
    config = replace(config, dataset_root=copy, keyframes=keyframes)
    with pytest.raises(InvalidInputError, match=r"found 0 in \['joint_1', .*--position_dims"):
        run(config)
    assert run(replace(config, position_dims=(0, 1, 2))).num_labels == 6


@pytest.mark.parametrize(
    ("episodes", "found"), [("1", [1]), ("0:2,4", [0, 1, 4]), ("3:99", [3, 4, 5])]
)
def test_episodes_are_chosen_by_id_and_range(config, episodes, found):
    run(replace(config, episodes=episodes))
    assert [label.episode_id for label in read_labels(config.output_jsonl)] == found


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"episodes": "9"}, "0 to 5"),
        ({"episodes": "a:b"}, "neither"),
        ({"max_episodes": 0}, "--max_episodes"),
        ({"num_keyframes": 0}, "--num_keyframes"),
        ({"resume": True, "overwrite": True}, "give one"),
        ({"allow_changed_settings": True}, "--resume"),
        ({"batch_size": 0}, "--batch_size"),
        ({"model_name": "x"}, "--model_name"),
        ({"base_url": "http://h/v1"}, "--base_url"),
        ({"backend": "openai"}, "--base_url"),
        ({"backend": "auto"}, "--model_name"),
        ({"gripper_commands": (1.0, 1.0)}, "--gripper_commands"),
    ],
)
def test_flags_that_make_no_sense_are_refused(config, changes, told):
    with pytest.raises(InvalidInputError, match=told):
        run(replace(config, **changes))


def test_motion_is_read_across_blocks_of_rows(config, root, monkeypatch):
    source = open_dataset(config.dataset_name, dataset_root=root)
    (block,) = source.columns(["observation.state", "action"])
    original = type(source).columns
    monkeypatch.setattr(
        type(source), "columns", lambda self, keys, block_rows=5: original(self, keys, block_rows)
    )
    flags = replace(config, episodes="0,2,3,5", position_dims=(2, 0, 1))
    plan = plan_tasks(source, flags, needs_images=False)
    tasks = list(plan.tasks())
    assert [task.episode_id for task in tasks] == [0, 2, 3, 5]
    for position, task in zip(plan.positions, tasks, strict=True):
        start, end = plan.episodes.starts[position], plan.episodes.ends[position]
        states, actions = block["observation.state"][start:end], block["action"][start:end]
        assert np.array_equal(task.motion.positions, states[:, [2, 0, 1]])
        assert task.motion.gripper_events == GripperChannel(1).events(actions)
