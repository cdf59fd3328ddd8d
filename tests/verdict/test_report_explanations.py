import pytest

from tests.fixtures.verdict import World, write_json, write_run
from world_modality.report import build_document, summary
from world_modality.verdict.document import Bullets, Table


def eval_coc(nats, recall):
    """A report of held-out explanations; pairs of bounds, or None where there is one episode."""

    def interval(bounds):
        low, high = bounds or (None, None)
        return {"value": 0.0, "low": low, "high": high, "num_episodes": 2 if bounds else 1}

    condition = {
        "perplexity": interval((1.0, 1.1)),
        "nats_minus_model": interval(nats),
        "scores": {"all": {"recall": interval((0.8, 0.9))}},
        "recall_minus_model": {"all": interval(recall)},
    }
    example = {"episode_index": 3, "instruction": "push", "model": [{"what": "go", "why": "so"}]}
    return {
        "run": {"seed": 4},
        "labels": {"num_explained": 2},
        "conditions": {
            **{"model": condition, "model, sampled": {"perplexity": None}},
            "instruction only": condition,
        },
        "examples": [example],
    }


@pytest.fixture
def section_of(tmp_path):
    write_run(tmp_path / "b", World(), "B", 0, World().error_sums(0, 0))

    def build(report):
        write_json(tmp_path / "explained" / "eval_coc.json", report)
        document = build_document((tmp_path,))
        (section,) = (one for one in document.sections if one.title == "Explanations")
        assert "Explanations" in [one.title for one in summary(document).sections]
        return section

    return build


def test_a_row_a_seed_and_condition_and_what_the_model_says(section_of):
    table, _, _, episode, example = section_of(eval_coc((0.01, 0.02), (-0.2, -0.1))).blocks
    assert isinstance(table, Table)
    assert [row[:2] for row in table.rows] == [("4", "model"), ("4", "instruction only")]
    assert "Episode 3, 'push'" in episode.text
    assert example.items == ("go: so.",)


@pytest.mark.parametrize(
    ("nats", "recall", "verdicts"),
    [
        ((0.01, 0.02), (-0.2, -0.1), ["the model explains better"] * 2),
        ((-0.02, -0.01), (0.1, 0.2), ["the model explains worse"] * 2),
        ((-0.01, 0.02), (-0.1, 0.0), ["not resolved: the interval spans 0"] * 2),
        (None, None, ["not resolved: there is no interval"] * 2),
    ],
)
def test_whether_the_model_explains_better_is_said_as_far_as_it_is_resolved(
    section_of, nats, recall, verdicts
):
    _, _, bullets, *_ = section_of(eval_coc(nats, recall)).blocks
    assert isinstance(bullets, Bullets)
    on_nats, on_recall = bullets.items[0].split("; event recall")
    for text, verdict in zip((on_nats, on_recall), verdicts, strict=True):
        assert f"({verdict})" in text


def test_a_damaged_report_on_explanations_is_left_out(section_of, tmp_path):
    write_json(tmp_path / "damaged" / "eval_coc.json", {"run": {}})
    section_of(eval_coc(None, None))
    rows = next(
        block.rows
        for block in build_document((tmp_path,)).blocks()
        if isinstance(block, Table) and block.name == "left_out"
    )
    assert any("lacks labels, conditions, examples" in reason for _, reason in rows)
