"""How well held-out episodes are explained, beside a decoder that reads the instruction only."""

from collections.abc import Mapping
from typing import Any

from world_modality.statistics.intervals import Interval
from world_modality.statistics.resolution import reading
from world_modality.verdict.document import Block, Bullets, Section, Text, table
from world_modality.verdict.findings import Findings
from world_modality.verdict.wording import NONE, interval_text

MODEL, CONTROL = "model", "instruction only"


def explanations_section(findings: Findings) -> Section | None:
    """Return None where no model that explains itself was evaluated."""
    reports = findings.evidence.sources.explanations
    if not reports:
        return None
    num_episodes = ", ".join(dict.fromkeys(str(r["labels"]["num_explained"]) for r in reports))
    blocks: list[Block] = [
        table(
            "explanations",
            f"Explanations of {num_episodes} held-out episodes: perplexity and nats per token of "
            "the labels, and the share of what happened that is named; differences are paired by "
            "episode, 95 % intervals over episodes. The control is the same decoder that reads "
            "the instruction only.",
            [
                *("seed", "decoder reads", "perplexity", "nats minus the model's"),
                *("event recall (%)", "recall minus the model's (points)"),
            ],
            [row for report in reports for row in _rows(report)],
        )
    ]
    controlled = [report for report in reports if CONTROL in report["conditions"]]
    if controlled:
        blocks.append(Text("The control minus the model, each pair about one training of the two:"))
        blocks.append(Bullets(tuple(_comparison(report) for report in controlled)))
    example = reports[0]["examples"][0]
    blocks.append(
        Text(
            f"Episode {example['episode_index']}, {example['instruction']!r}: from its middle "
            "frame the model says"
        )
    )
    steps = [f"{step['what']}: {step['why']}." for step in example[MODEL]]
    blocks.append(Bullets(tuple(steps or ["(nothing)"])))
    return Section("Explanations", tuple(blocks))


def _rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, condition in report["conditions"].items():
        if condition["perplexity"] is None:
            continue  # sampled text
        change, recall, fall = NONE, condition["scores"]["all"]["recall"], NONE
        if name != MODEL:
            change = interval_text(Interval(**condition["nats_minus_model"]), signed=True)
            fall = _percent(condition["recall_minus_model"]["all"], signed=True)
        perplexity = Interval(**condition["perplexity"]).with_decimals(4)
        rows.append([str(report["run"]["seed"]), name, perplexity, change, _percent(recall), fall])
    return rows


def _comparison(report: Mapping[str, Any]) -> str:
    control = report["conditions"][CONTROL]
    nats, recall = control["nats_minus_model"], control["recall_minus_model"]["all"]
    better, worse = "the model explains better", "the model explains worse"
    on_nats = reading(Interval(**nats), worse, better, with_reason=True)
    on_recall = reading(Interval(**recall), better, worse, with_reason=True)
    return (
        f"seed {report['run']['seed']}: nats a token {interval_text(Interval(**nats), signed=True)}"
        f" ({on_nats}); event recall {_percent(recall, signed=True)} points ({on_recall})."
    )


def _percent(stored: Mapping[str, Any], *, signed: bool = False) -> str:
    return interval_text(Interval(**stored), percent=True, signed=signed)
