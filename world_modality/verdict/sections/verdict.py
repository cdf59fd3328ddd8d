"""The question, the verdict in three sentences, and what was compared."""

from world_modality.arms import READING_ARM
from world_modality.statistics.resolution import NOT_RESOLVED_MEANS
from world_modality.verdict.document import Bullets, Section, Text
from world_modality.verdict.findings import ContrastResult, Findings
from world_modality.verdict.wording import (
    closed_loop_reading,
    counted,
    finding,
    interval_text,
    offline_reading,
    ratio_text,
    sizes_text,
)

QUESTION = (
    "Does a world token that the policy reads help, beyond the auxiliary loss of predicting it, "
    "and does the policy really use it?"
)


def verdict_section(findings: Findings) -> Section:
    """Answer in three sentences, each no stronger than the tables below it."""
    return Section(
        "Verdict",
        (
            Text(QUESTION),
            Bullets(
                (
                    _sentence("The auxiliary loss (B against A)", findings.contrasts("B", "A")),
                    _sentence("The token as an input (C against B)", findings.contrasts("C", "B")),
                    _use_sentence(findings),
                )
            ),
            Text(_caution(findings)),
        ),
    )


def _sentence(subject: str, results: list[ContrastResult]) -> str:
    found = "; ".join(finding(result) for result in results)
    return f"{subject}: {found or 'not tested here'}."


def _use_sentence(findings: Findings) -> str:
    subject = f"Use of the token ({READING_ARM}, given another frame's token of the same task)"
    parts = []
    for effect in findings.offline:
        if effect.arm == READING_ARM and effect.corruption.of_task:
            sizes = sizes_text(len(effect.per_seed), effect.ratio.num_episodes)
            parts.append(
                f"action MSE: {offline_reading(effect)} (corrupted over clean "
                f"{ratio_text(effect.ratio)}, {sizes})"
            )
    for loop in findings.closed_loop:
        if loop.arm == READING_ARM and loop.corruption.of_task:
            interval = interval_text(loop.difference, percent=True, signed=True)
            sizes = sizes_text(loop.num_seeds, loop.difference.num_episodes)
            parts.append(f"success rate: {closed_loop_reading(loop)} ({interval} points, {sizes})")
    return f"{subject}: {'; '.join(parts) or 'not tested here'}."


def _caution(findings: Findings) -> str:
    main = findings.main
    seeds = {seed for _, seed, _ in main.all_runs()}
    sentences = []
    if len(seeds) == 1:
        sentences.append(
            "One seed: the intervals cover other episodes, not another training of the same arm, "
            "which may turn out otherwise."
        )
    note = main.first_run.evaluation["run"].get("encoder_note")
    if note:
        sentences.append(f"Encoder: {note}.")
    return " ".join([*sentences, NOT_RESOLVED_MEANS])


def scope_section(findings: Findings) -> Section:
    """Say what was compared, and how much was not."""
    evidence = findings.evidence
    main = evidence.main
    run = main.first_run.evaluation["run"]
    arms = ", ".join(
        f"{arm} ({counted(len(main.runs[arm]), 'seed')}: "
        f"{', '.join(map(str, sorted(main.runs[arm])))})"
        for arm in main.arms
    )
    items = [
        f"Arms: {arms}.",
        f"Dataset {run['dataset_name']}, {counted(run['num_val_episodes'], 'held-out episode')} "
        f"({run['num_val_frames']} frames), the same for every arm and seed; encoder "
        f"{run['encoder']}; cache {main.fingerprint[:10]}.",
        "Flags that all arms share: "
        + ", ".join(f"{k} {v}" for k, v in sorted(main.settings.items()) if v is not None)
        + ".",
    ]
    if evidence.conditions is None:
        items.append("Closed loop: no rollouts of these runs were given.")
    else:
        conditions = evidence.conditions
        rollouts = [r for _, _, one in main.all_runs() if (r := evidence.rollouts_of(one))]
        items.append(
            f"Closed loop: {conditions['suite']}, {counted(len(rollouts), 'checkpoint')}, "
            f"{sum(r.num_counted for r in rollouts)} episodes that count and "
            f"{sum(r.num_errors for r in rollouts)} that ended in an error; GL backend "
            f"{conditions['gl_backend']}; {conditions['n_action_steps']} actions of each chunk "
            "executed."
        )
    if evidence.others:
        items.append(
            f"{counted(evidence.num_other_runs, 'run')} with other settings: "
            "compared among themselves, see “Other settings”."
        )
    if evidence.left_out:
        number = counted(len(evidence.left_out), "entry").replace("entrys", "entries")
        items.append(f"{number} not used in the main comparison: see “Left out, and why”.")
    return Section("What was compared", (Bullets(tuple(items)),))
