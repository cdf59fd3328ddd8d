"""The question, its answer in the order of reading, and what was compared."""

from collections.abc import Iterator, Sequence

from world_modality.arms import READING_ARM
from world_modality.statistics.design import UNITS
from world_modality.statistics.resolution import NOT_RESOLVED, NOT_RESOLVED_MEANS
from world_modality.tokens.corruption import Corruption
from world_modality.verdict.assay import AssayCheck, assay_checks, assay_fired
from world_modality.verdict.document import Block, Bullets, Section, Text
from world_modality.verdict.findings import ContrastResult, Findings
from world_modality.verdict.planned import PlannedResult
from world_modality.verdict.sections.planned import answers_table
from world_modality.verdict.wording import (
    claim_text,
    closed_loop_reading,
    contrast_reading,
    counted,
    difference_text,
    finding,
    interval_text,
    needed_text,
    offline_reading,
    planned_difference_text,
    ratio_text,
    sizes_text,
)

QUESTION = (
    "Does a world token that the policy reads help, beyond the auxiliary loss of predicting it, "
    "and does the policy really use it?"
)
BOUND = (
    "With one frame of context the token that C reads is the nearest centroid of the embedding "
    "that B reads, too, the argmax of a linear map of it: C − B can show what it is worth to have "
    "that said in a token, not what new information is worth."
)

MASKS = (
    "The sequences of two arms differ in length, so that with one seed they draw other dropout "
    "masks: that is part of what their difference varies by from seed to seed."
)


def verdict_section(findings: Findings) -> Section:
    """Say whether the assay fired, what is known, and how large it is; no more than tables say.

    Where it did not fire nothing is said to be known: the tables below have the estimates.
    """
    checks = assay_checks(findings.evidence, findings.planned)
    fired = assay_fired(checks)
    first = Text(f"{_headline(checks, fired)}{QUESTION}")
    blocks: list[Block] = [first, Bullets(tuple(_assay_sentences(checks)))]
    if fired is False:
        return Section("Verdict", (*blocks, Text(_caution(findings))))
    if findings.planned:
        blocks += [Text(_planned_summary(findings.planned)), answers_table(findings.planned)]
    else:
        blocks.append(Bullets(tuple(_known(findings))))
    sentences = [
        _sentence("The auxiliary loss (B against A)", findings.contrasts("B", "A")),
        _sentence("The token as an input (C against B)", findings.contrasts("C", "B")),
        _use_sentence(findings),
    ]
    # Of a design the table has said it, with the price of looking in its intervals.
    blocks.append(Bullets(tuple(sentences[2:] if findings.planned else sentences)))
    return Section("Verdict", (*blocks, Text(_caution(findings))))


def _headline(checks: Sequence[AssayCheck], fired: bool | None) -> str:
    """Return what comes before the question; nothing where no positive control was run."""
    if fired is None:
        return ""
    if fired:
        return "The assay fired. "
    if any(one.first_is_better for one in checks if one.role == "placebo"):
        return (
            "The assay cannot be trusted: what carries no content is better, too. Nothing is "
            "claimed; the tables below are estimates. "
        )
    if not all(one.is_at_its_end for one in checks if one.role == "positive control"):
        return "The assay has not fired so far. Nothing is claimed yet. "
    return "The assay did not fire. Nothing is claimed; the tables below are estimates. "


def _assay_sentences(checks: Sequence[AssayCheck]) -> Iterator[str]:
    """Say whether the positive controls fired and the placebos did not."""
    controls = [check for check in checks if check.role == "positive control"]
    placebos = [check for check in checks if check.role == "placebo"]
    if not controls:
        yield (
            "Did the assay fire? No positive control was run: whether this comparison can find an "
            "effect is not known."
        )
    elif any(check.first_is_better for check in controls):
        yield f"The assay fired: {'; '.join(map(_check_text, controls))}."
    else:
        yield (
            f"The assay did not fire: {'; '.join(map(_check_text, controls))}. It has not been "
            "seen to find an effect, so that what is not resolved says nothing."
        )
    if not placebos:
        yield "No placebo was run."
    elif any(check.first_is_better for check in placebos):
        better = [_check_text(check) for check in placebos if check.first_is_better]
        yield (
            f"The placebo fired, too: {'; '.join(better)}. What is better may owe it to "
            "something else than the token's content."
        )
    else:
        yield f"The placebo did not fire: {'; '.join(map(_check_text, placebos))}."


def _check_text(check: AssayCheck) -> str:
    result = check.result
    if isinstance(result, PlannedResult):
        unit = UNITS[result.contrast.measure]
        numbers = f"{planned_difference_text(result)} {unit}"
        return f"{result.contrast.pair}: {claim_text(result)} ({numbers})"
    unit = "points of success" if result.measure.is_share else f"of {result.measure.name}"
    return f"{result.contrast.name}: {contrast_reading(result)} ({difference_text(result)} {unit})"


def _known(findings: Findings) -> Iterator[str]:
    """Sort the comparisons by what is known of them."""
    for measure, results in findings.families:
        words = {1: "better", -1: "worse", 0: NOT_RESOLVED}
        sorted_by = {
            word: [
                result.contrast.name
                for result in results
                if result.direction == direction and not result.is_identity_check
            ]
            for direction, word in words.items()
        }
        parts = [f"{word}: {', '.join(names)}" for word, names in sorted_by.items() if names]
        yield f"By {measure.name}, the first arm of each pair is {'; '.join(parts)}."


def _planned_summary(planned: Sequence[PlannedResult]) -> str:
    """Say how many contrasts were answered, and what the rest would take."""
    questions = [one for one in planned if one.twin is None]
    still_open = [one for one in questions if one.course.claim == "open"]
    answered = f"{len(questions) - len(still_open)} of {counted(len(questions), 'contrast')}"
    return f"Answered: {answered}." + "".join(f" {needed_text(one)}" for one in still_open)


def _sentence(subject: str, results: list[ContrastResult]) -> str:
    found = "; ".join(finding(result) for result in results)
    return f"{subject}: {found or 'not tested here'}."


def _use_sentence(findings: Findings) -> str:
    subject = f"Use of the token ({READING_ARM}, given another frame's token of the same task)"
    parts = []
    for effect in findings.offline:
        if effect.arm == READING_ARM and _is_of_task(effect.corruption):
            sizes = sizes_text(len(effect.per_seed), effect.ratio.num_episodes)
            parts.append(
                f"action MSE: {offline_reading(effect)} (corrupted over clean "
                f"{ratio_text(effect.ratio)}, {sizes})"
            )
    for loop in findings.closed_loop:
        if loop.arm == READING_ARM and _is_of_task(loop.corruption):
            interval = interval_text(loop.difference, percent=True, signed=True)
            sizes = sizes_text(loop.num_seeds, loop.difference.num_episodes)
            parts.append(f"success rate: {closed_loop_reading(loop)} ({interval} points, {sizes})")
    return f"{subject}: {'; '.join(parts) or 'not tested here'}."


def _is_of_task(corruption: Corruption) -> bool:
    return corruption.of_task and not corruption.is_partial


def _caution(findings: Findings) -> str:
    main = findings.main
    seeds = {seed for _, seed, _ in main.all_runs()}
    sentences = []
    if len(seeds) == 1:
        sentences.append(
            "One seed: the intervals cover other episodes, not another training of the same arm, "
            "which may turn out otherwise."
        )
    if {"B", READING_ARM} <= set(main.runs) and main.settings.get("context_frames") == 1:
        sentences.append(BOUND)
        sentences += [MASKS] if main.settings.get("dropout") else []
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
