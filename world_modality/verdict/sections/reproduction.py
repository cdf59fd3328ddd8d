"""How to make every number again, what was left out, and how the numbers were made."""

import json

from world_modality.verdict.document import Block, Bullets, Commands, Section, Text, table
from world_modality.verdict.findings import Findings
from world_modality.verdict.finished_run import FinishedRun, cache_arguments
from world_modality.verdict.wording import NONE


def reproduction_section(findings: Findings) -> Section:
    """Commands, versions and fingerprints of every run that is compared."""
    evidence = findings.evidence
    rows, commands = [], []
    for index, group in enumerate(evidence.groups):
        for arm, seed, run in group.all_runs():
            rollouts = evidence.rollouts_of(run)
            checkpoint = NONE if rollouts is None else rollouts.checkpoint_sha256[:10]
            rows.append(
                [
                    *("main" if index == 0 else f"other {index}", arm, str(seed)),
                    *(str(run.folder), run.fingerprint[:10], checkpoint, _versions(run)),
                ]
            )
            rolled_out = evidence.rollouts.get(run.folder, {}).values()
            commands += [*_commands(run), *(one.command for one in rolled_out if one.command)]
    blocks: list[Block] = [
        table(
            "cells",
            "Every run on this page. Fingerprint: of the cache, its arrays, encoder, codebook and "
            "split; SHA-256: of the checkpoint that was rolled out.",
            ["group", "arm", "seed", "folder", "cache", "checkpoint", "versions"],
            rows,
        ),
        Text("The commands, from the checkout; the same seed on the same machine gives the same."),
        Commands(tuple(dict.fromkeys(commands))),
    ]
    design = " --design data/design.json" if findings.planned else ""
    blocks += [
        Text(
            "The outcomes of every contrast lie beside this page as tidy tables, with the versions "
            "(`data/versions.json`) and a seal: `data/inputs.sha256` and `data/SHA256SUMS` list "
            "the SHA-256 of all that was read and of the tables. The analysis again, from the "
            "tables alone:"
        ),
        Commands(
            (
                "(cd data && sha256sum -c SHA256SUMS)",
                "python -m world_modality.statistics.from_tables data/success.csv "
                f"data/action_error.csv{design}",
            )
        ),
    ]
    if evidence.conditions is not None:
        conditions = json.dumps(evidence.conditions, sort_keys=True)
        blocks.append(Text(f"Conditions of all rollouts: {conditions}"))
    return Section("How to reproduce it", tuple(blocks))


def _versions(run: FinishedRun) -> str:
    versions = run.evaluation["run"].get("versions", {})
    return ", ".join(f"{name} {value}" for name, value in sorted(versions.items())) or NONE


def _commands(run: FinishedRun) -> list[str]:
    where = f"--checkpoint {run.folder / run.checkpoint_name} {cache_arguments(run.config)}"
    commands = [run.command, f"python -m world_modality.eval_offline {where}"]
    if run.corruption is not None:
        commands.append(f"python -m world_modality.intervention_corrupt_world {where}")
    return commands


def left_out_section(findings: Findings) -> Section:
    """List all that no comparison uses."""
    left_out = findings.evidence.left_out
    if not left_out:
        return Section("Left out, and why", (Text("Nothing: all that was found is compared."),))
    rows = [[one.path, one.reason] for one in left_out]
    caption = "Nothing is skipped in silence: all that was found and is not in the main comparison."
    return Section("Left out, and why", (table("left_out", caption, ["what", "why"], rows),))


def method_section(findings: Findings) -> Section:
    """Say how intervals, corrections and sample sizes were computed."""
    return Section(
        "How the numbers were made",
        (
            Bullets(
                (
                    "Held-out episodes are the same for every arm and seed, so seeds and episodes "
                    "are crossed and differences are taken within a seed and an episode.",
                    "Intervals: the two-way analysis of variance of random seeds and of random "
                    "episodes within each task, of which a fixed number was drawn; what one seed "
                    "in one episode varies by is counted once. The interval is Student's, each "
                    "level with its own t (Banerjee, 1960), which never covers less than 95 %. "
                    "With one seed only episodes vary. Reports of held-out episodes that an "
                    "earlier version wrote do not name their tasks: their episodes count as of "
                    "one.",
                    "Ratios of errors: the logarithm is estimated, by the same method, and "
                    "exponentiated, so that twice and half are equally far from 1 and no bound "
                    "reaches 0; the value is the geometric mean over seeds.",
                    "Correction: Holm (1979) within each table of differences. C_no_world_input "
                    "beside B is an identity check of C's code path, which no correction counts.",
                    "Planned contrasts: group-sequential looks (Lan and DeMets, 1983; power family "
                    "of Kim and DeMets, 1987) at growing numbers of seeds, two one-sided tests for "
                    "equivalence, Holm's correction over the contrasts for each kind of claim "
                    "(Maurer and Bretz, 2013).",
                    "Proportions: Wilson (1927) for a rate, Newcombe (1998, method 10) for a "
                    "paired difference, McNemar's exact test for pairs.",
                    "What would resolve it: noncentral t at 80 % power, two-sided, at 5 % divided "
                    "by the number of comparisons, with the estimated variances taken for true.",
                    "Only runs with the same cache fingerprint, flags, suite, rendering and GL "
                    "backend share a comparison; a control encoder's arm A joins it where dataset, "
                    "split and rendering are the same.",
                )
            ),
        ),
    )
