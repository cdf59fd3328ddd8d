import json
from dataclasses import replace

import pytest

from coc_vla.coc_generation import run
from coc_vla.labels.record import read_labels, read_records, scan_labels
from coc_vla.validate_labels import ValidateLabelsConfig
from coc_vla.validate_labels import run as validate
from tests.fixtures.chat_server import GOOD_ANSWER, ChatServer, Misbehaviour, good_reply, serving
from tests.fixtures.coc import comparable, of_server
from tests.fixtures.lerobot import TASKS
from world_modality.system.errors import InvalidInputError, UserError

NUM_EPISODES = 6


def test_rules_label_every_episode_of_a_dataset(config):
    summary = run(config)
    labels = read_labels(config.output_jsonl)
    assert [label.episode_id for label in labels] == list(range(NUM_EPISODES))
    assert [label.instruction for label in labels] == [TASKS[i % 3] for i in range(NUM_EPISODES)]
    assert [label.keyframe_indices[-1] for label in labels] == [11, 12, 13] * 2
    assert {label.model_name for label in labels} == {"rules-v3"}
    assert (summary.num_labels, summary.num_errors) == (NUM_EPISODES, 0)
    written = json.loads(config.output_jsonl.with_suffix(".summary.json").read_text("utf-8"))
    assert (written["num_labels"], written["num_missing"]) == (NUM_EPISODES, 0)
    resolved = json.loads(config.output_jsonl.with_suffix(".config.json").read_text("utf-8"))
    assert resolved["backend"] == "rules"


def test_a_server_labels_the_same_at_any_concurrency_and_order(config, tmp_path):
    server = ChatServer(latency_s=0.05)
    with serving(server) as url:
        run(of_server(config, url, concurrency=6))
        assert server.at_once > 2
        alone = of_server(config, url, concurrency=1, output_jsonl=tmp_path / "alone.jsonl")
        run(replace(alone, episodes="4:6"))
        assert run(replace(alone, resume=True)).num_kept == 2
    assert len(server.bodies) == 2 * NUM_EPISODES, "finished episodes are not asked about again"
    assert comparable(config.output_jsonl) == comparable(alone.output_jsonl)
    assert len({label.coc_text for label in read_labels(alone.output_jsonl)}) == NUM_EPISODES


def test_keyframes_reach_the_server_in_order(config):
    server = ChatServer()
    with serving(server) as url:
        run(of_server(config, url, max_episodes=1, num_keyframes=4))
    content = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url"] * 4 + ["text"]
    assert len({part["image_url"]["url"] for part in content[:4]}) == 4
    assert "push the block to the goal" in content[4]["text"]
    assert "0.0 s, 0.4 s, 0.7 s, 1.1 s" in content[4]["text"]
    assert read_labels(config.output_jsonl)[0].keyframe_indices == (0, 4, 7, 11)


def test_a_refused_answer_is_asked_for_again_with_the_reason(config):
    server = ChatServer("no idea", num_first=1)
    with serving(server) as url:
        summary = run(of_server(config, url, max_episodes=1))
    first, second = (body["messages"][0]["content"][-1]["text"] for body in server.bodies)
    assert second.startswith(first)
    assert "no idea" in second
    assert "there are no numbered steps" in second
    assert server.bodies[1]["seed"] == server.bodies[0]["seed"] + 1
    (label,) = read_labels(config.output_jsonl)
    assert (label.attempts, label.seed) == (2, server.bodies[0]["seed"])
    assert (summary.num_first_answers, summary.num_answers) == (0, 2)


def test_what_stays_refused_is_an_error_with_its_raw_text_and_tried_again_on_resume(config):
    bad = "1. What: Move to (0.1, 0.2). Why: it is there."
    server = ChatServer(bad)
    with serving(server) as url:
        with pytest.raises(InvalidInputError, match=r"none of 2 episodes got a label.*there are"):
            run(of_server(config, url, max_episodes=2, max_retries=1))
        assert len(server.bodies) == 4
        records = read_records(config.output_jsonl)
        assert [record.raw_text for record in records] == [bad, bad]
        assert all("there are 1 steps" in record.error for record in records)
        assert read_labels(config.output_jsonl) == []
        server.reply = good_reply
        summary = run(of_server(config, url, max_episodes=2, max_retries=1, resume=True))
    assert (summary.num_kept, summary.num_labels) == (0, 2)
    assert len(read_labels(config.output_jsonl)) == 2


def test_a_file_with_labels_is_neither_mixed_nor_lost_without_being_told(config):
    run(config)
    before = config.output_jsonl.read_bytes()
    with pytest.raises(InvalidInputError, match=r"--resume.*--overwrite"):
        run(config)
    assert config.output_jsonl.read_bytes() == before
    run(replace(config, overwrite=True, max_episodes=1))
    assert scan_labels(config.output_jsonl).num_lines == 1


def test_a_changed_prompt_or_model_is_noticed(config, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Explain $instruction.\n--- retry ---\nNo: $faults\n")
    with serving(ChatServer()) as url:
        run(of_server(config, url, max_episodes=3))
        for changes, told in (
            ({"prompt_file": prompt}, "prompt_sha256 was"),
            ({"model_name": "other"}, "model_name was 'tiny-vl', is 'other'"),
            ({"seed": 5}, "seed was 0, is 5"),
            ({"keyframes": "events"}, "keyframes was 'uniform'"),
        ):
            with pytest.raises(InvalidInputError, match=told):
                run(of_server(config, url, resume=True, **changes))
        mixed = {"prompt_file": prompt, "resume": True, "allow_changed_settings": True}
        run(of_server(config, url, **mixed))
    labels = read_labels(config.output_jsonl)
    assert len({label.prompt_sha256 for label in labels[:3]}) == 1
    assert len({label.prompt_sha256 for label in labels}) == 2


def test_a_server_that_goes_away_loses_nothing(config):
    server = ChatServer(lambda b, n: good_reply(b, n) if n < 3 else Misbehaviour(404, "gone"))
    with serving(server) as url:
        with pytest.raises(UserError, match="gone"):
            run(of_server(config, url, concurrency=1))
        assert len(read_labels(config.output_jsonl)) == 3
        server.reply = good_reply
        run(of_server(config, url, concurrency=1, resume=True))
    assert len(read_labels(config.output_jsonl)) == NUM_EPISODES


def test_many_failures_in_a_row_end_the_run(config):
    server = ChatServer(Misbehaviour(400, "no images, please"))
    with serving(server) as url, pytest.raises(UserError, match=r"3 requests in a row.*no images"):
        run(of_server(config, url, concurrency=1, max_failures_in_row=3))
    assert len(read_records(config.output_jsonl)) == 2


def ended(reason, text=None, **message):
    choice = {"message": {"content": text, **message}, "finish_reason": reason}
    return Misbehaviour(200, json.dumps({"choices": [choice]}))


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (ended("length", GOOD_ANSWER), "cut off"),
        (ended("length"), "before the answer began; raise --max_tokens"),
        (ended("length", "<think>1. What: the"), "before the answer began; raise --max_tokens"),
        (ended("stop", refusal="I cannot help."), "refused to answer: I cannot help."),
    ],
)
def test_answers_without_a_whole_text_cost_one_request_each_and_the_run_goes_on(
    config, reply, told
):
    """Every episode but the last; more in a row than failed requests may be."""
    server = ChatServer(reply, num_first=NUM_EPISODES - 1)
    with serving(server) as url:
        limits = {"concurrency": 1, "max_failures_in_row": 2, "max_retries": 0}
        summary = run(of_server(config, url, **limits))
    assert len(server.bodies) == NUM_EPISODES
    assert (summary.num_labels, summary.num_errors) == (1, NUM_EPISODES - 1)
    errors = [record.error for record in read_records(config.output_jsonl) if record.error]
    assert len(errors) == NUM_EPISODES - 1
    assert all(told in error for error in errors)


def test_half_a_surrogate_pair_in_an_answer_becomes_a_character_that_can_be_shown(config, capsys):
    torn = GOOD_ANSWER.replace("Why:", "\ud83d Why:", 1)
    server = ChatServer(lambda body, count: "no steps \ud83d" if count == 0 else torn)
    with serving(server) as url:
        run(of_server(config, url, max_episodes=1, concurrency=1))
    (label,) = read_labels(config.output_jsonl)
    assert label.raw_text == torn, "the raw answer stays as it came"
    assert "?" in label.text
    capsys.readouterr()
    validate(ValidateLabelsConfig(config.output_jsonl))
    assert label.text.encode().decode() in capsys.readouterr().out
