"""Success in closed loop: checkpoint by checkpoint, task by task, and exact tests on pairs."""

from world_modality.statistics.proportions import wilson_interval
from world_modality.statistics.resolution import holm_adjusted
from world_modality.verdict.document import Block, Figure, Section, Table, Text, table, table_of
from world_modality.verdict.drawing import line_styles, new_figure, scaled, svg_bytes
from world_modality.verdict.findings import Findings, PairedEpisodes
from world_modality.verdict.rollout_file import PolicyRollouts
from world_modality.verdict.wording import interval_text, p_text

Column = tuple[str, int, PolicyRollouts]


def success_section(findings: Findings) -> Section | None:
    """Return None where nothing was rolled out."""
    evidence = findings.evidence
    columns = [
        (arm, seed, rollouts)
        for arm, seed, run in evidence.main.all_runs()
        if (rollouts := evidence.rollouts_of(run)) is not None
    ]
    if not columns:
        return None
    blocks: list[Block] = [
        Text(
            "Episodes in layouts that no demonstration has, the same for every checkpoint. "
            "Wilson's interval is of one checkpoint's success rate: it knows nothing of other "
            "seeds. An episode that ended in an error counts as neither."
        ),
        _checkpoint_table(columns),
        _task_figure(columns),
    ]
    pairs = [(result.contrast.name, pair) for result in findings.success for pair in result.pairs]
    if pairs:
        blocks.append(_pair_table(pairs))
    return Section("Success in closed loop", tuple(blocks))


def _checkpoint_table(columns: list[Column]) -> Table:
    rows = [
        [
            arm,
            str(seed),
            f"{rollouts.num_solved}/{rollouts.num_counted}",
            interval_text(wilson_interval(rollouts.num_solved, rollouts.num_counted), percent=True),
            str(rollouts.num_errors),
        ]
        for arm, seed, rollouts in columns
    ]
    return table(
        "success",
        "Success of each checkpoint, in percent with Wilson's 95 % interval.",
        ["arm", "seed", "solved", "success (%)", "errors"],
        rows,
    )


def _task_figure(columns: list[Column]) -> Figure:
    arms = list(dict.fromkeys(arm for arm, _, _ in columns))
    tasks = list(dict.fromkeys(key[0] for _, _, rollouts in columns for key in rollouts.outcomes))
    figure, (axis,) = new_figure(8.5, 1.4 + len(tasks) * max(0.45, 0.13 * len(arms)))
    numbers = []
    for index, (arm, style) in enumerate(line_styles(arms, 5).items()):
        offset = (index - (len(arms) - 1) / 2) * 0.8 / len(arms)
        for row, task in enumerate(tasks):
            solved, counted = _tally([r for name, _, r in columns if name == arm], task)
            rate = wilson_interval(solved, counted)
            numbers.append((arm, task, solved, counted, rate.value, rate.low, rate.high))
            if rate.value is None:
                continue
            value, low, high = scaled(rate, 100)
            axis.hlines(row + offset, low, high, color=style["color"], lw=1.6)
            label = arm if row == 0 else None
            axis.plot([value], [row + offset], linestyle="", label=label, **style)
    counts = [n for *_, n, _, _, _ in numbers]
    axis.set_yticks(range(len(tasks)), tasks)
    axis.set_ylim(len(tasks) - 0.45, -0.55)
    axis.set_xlim(-2, 102)
    axis.set_xlabel("success rate (%)")
    figure.legend(loc="outside upper center", frameon=False, ncols=min(len(arms), 5), fontsize=9)
    span = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return Figure(
        "success_per_task",
        f"Success by task, n = {span} episodes an arm and task, all seeds together; line: Wilson's "
        "95 % interval, which takes the episodes of several seeds for independent.",
        svg_bytes(figure),
        ("arm", "task", "num_solved", "num_episodes", "success_rate", "low", "high"),
        tuple(numbers),
    )


def _tally(rollouts: list[PolicyRollouts], task: str) -> tuple[int, int]:
    outcomes = [
        outcome
        for one in rollouts
        for key, outcome in one.outcomes.items()
        if key[0] == task and outcome is not None
    ]
    return sum(outcomes), len(outcomes)


def _pair_table(pairs: list[tuple[str, PairedEpisodes]]) -> Table:
    adjusted = holm_adjusted([pair.p_value for _, pair in pairs])
    return table_of(
        "mcnemar",
        "The same episodes, checkpoint against checkpoint: how many both, only one, or neither "
        "solved; difference in points with Newcombe's interval; McNemar's exact test, before and "
        f"after Holm's correction for the {len(pairs)} tests of this table. A row is about two "
        "checkpoints, not about their arms.",
        [(name, pair, p) for (name, pair), p in zip(pairs, adjusted, strict=True)],
        {
            "pair": lambda row: row[0],
            "seed": lambda row: str(row[1].seed),
            "both": lambda row: str(row[1].num_both),
            "only first": lambda row: str(row[1].num_only_first),
            "only second": lambda row: str(row[1].num_only_second),
            "neither": lambda row: str(row[1].num_neither),
            "difference": lambda row: interval_text(row[1].difference, percent=True, signed=True),
            "McNemar p": lambda row: p_text(row[1].p_value),
            "Holm p": lambda row: p_text(row[2]),
        },
    )
