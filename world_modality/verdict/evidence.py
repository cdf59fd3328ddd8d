"""What the report compares: the main group of runs, their rollouts, and what stays outside."""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from world_modality.arms import ARMS, CONTROL_ENCODERS, arm_order
from world_modality.cache.contract import sha256_of_file, sha256_of_json
from world_modality.system.errors import InvalidInputError
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.rollout_file import PolicyRollouts
from world_modality.verdict.sources import LeftOut, Sources

# Parts of a cache that have to agree for arm A, which reads no token, to be compared across caches.
_SHARED_DATA = ("dataset", "split", "rendering")


@dataclass
class ComparisonGroup:
    """Runs that differ in arm and seed only.

    Attributes:
        fingerprint: of their cache.
        settings: the flags that they share.
        runs: by arm and seed.
    """

    fingerprint: str
    settings: Mapping[str, Any]
    runs: dict[str, dict[int, FinishedRun]] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        """In the order of tables."""
        return sorted(self.runs, key=arm_order)

    def all_runs(self) -> list[tuple[str, int, FinishedRun]]:
        """Return arm, seed and run, in the order of tables."""
        return [(arm, run.seed, run) for arm in self.arms for run in self.runs_of(arm)]

    @property
    def first_run(self) -> FinishedRun:
        """Stands for all where they agree."""
        return self.all_runs()[0][2]

    def runs_of(self, arm: str) -> list[FinishedRun]:
        """Return an arm's runs, by seed."""
        return [run for _, run in sorted(self.runs.get(arm, {}).items())]

    def put(self, arm: str, run: FinishedRun) -> list[LeftOut]:
        """Add a run, or return why it is not used."""
        kept = self.runs.setdefault(arm, {}).setdefault(run.seed, run)
        if kept is run:
            return []
        reason = f"same arm, seed and settings as {kept.folder}, which is used"
        return [LeftOut(str(run.folder), reason)]

    def difference(self, other: "ComparisonGroup") -> str:
        """Say in which settings another group differs from this one."""
        parts = _differences(self.settings, other.settings, _short)
        if self.fingerprint != other.fingerprint:
            known = _differences(self.first_run.data, other.first_run.data, _short)
            hashes = f"cache {other.fingerprint[:10]} instead of {self.fingerprint[:10]}"
            parts = [*(known or [hashes]), *parts]
        return "; ".join(parts)


def group_runs(runs: Iterable[FinishedRun]) -> tuple[list[ComparisonGroup], list[LeftOut]]:
    """Put runs into groups, the largest first; runs of control encoders join the first."""
    groups: dict[str, ComparisonGroup] = {}
    left_out: list[LeftOut] = []
    # Arm A, which no future-token flag changes, is in every group that has its other flags.
    for run in sorted(runs, key=lambda run: not ARMS[run.model_type].predicts_world):
        fitting = [
            group
            for group in groups.values()
            if not ARMS[run.model_type].predicts_world
            and group.fingerprint == run.fingerprint
            and _agree(run.settings, group.settings)
        ]
        if not fitting:
            key = sha256_of_json([run.fingerprint, run.settings])
            fitting = [groups.setdefault(key, ComparisonGroup(run.fingerprint, run.settings))]
        for group in fitting:
            left_out += group.put(run.arm, run)
    # A stable sort: of two equally large groups the one that was named first is compared.
    ordered = sorted(groups.values(), key=lambda group: -len(group.all_runs()))
    others = [group for group in ordered[1:] if not _joins_as_control(group, ordered[0])]
    return ordered[:1] + others, left_out


def _joins_as_control(group: ComparisonGroup, main: ComparisonGroup) -> bool:
    """Add a control encoder's A to the main group, where only encoder and codebook differ."""
    if set(group.runs) != {"A"} or not _agree(group.settings, main.settings):
        return False
    mine, theirs = group.first_run.data, main.first_run.data
    name = CONTROL_ENCODERS.get(str(mine["encoder"]))
    if name is None or mine["encoder"] == theirs["encoder"]:
        return False
    if mine.get("observation") != theirs.get("observation"):
        return False
    if any(mine.get(part) is None or mine[part] != theirs.get(part) for part in _SHARED_DATA):
        return False
    main.runs[name] = group.runs["A"]
    return True


def _agree(baseline: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return all(
        baseline.get(name) == settings.get(name)
        for name in baseline.keys() | settings.keys()
        if baseline.get(name) is not None
    )


def _differences(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], shown: Callable[[Any], str]
) -> list[str]:
    return [
        f"{name} {shown(theirs.get(name))} instead of {shown(mine.get(name))}"
        for name in sorted((mine.keys() | theirs.keys()) - {"world_tokens"})
        if mine.get(name) != theirs.get(name)
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else _canonical(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:10]
    return text if len(text) <= 60 else f"{text[:57]}…"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class Evidence:
    """The runs and their rollouts.

    Attributes:
        main: the largest group, which the verdict is about.
        others: groups with other settings, each compared within itself.
        rollouts: of a run, by its folder and what was done to its token (`none` for nothing).
        conditions: that all of these rollouts share; None where there are none.
        sources: everything else that was found.
        left_out: all that no comparison uses, and why.
    """

    main: ComparisonGroup
    others: tuple[ComparisonGroup, ...]
    rollouts: Mapping[Path, Mapping[str, PolicyRollouts]]
    conditions: Mapping[str, Any] | None
    sources: Sources
    left_out: tuple[LeftOut, ...]

    def rollouts_of(self, run: FinishedRun, corruption: str = "none") -> PolicyRollouts | None:
        """Return a run's rollouts under a corruption, if there are any."""
        return self.rollouts.get(run.folder, {}).get(corruption)

    @property
    def num_other_runs(self) -> int:
        """Runs that are compared, but not in the main group."""
        others = {run.folder for group in self.others for _, _, run in group.all_runs()}
        return len(others - {run.folder for _, _, run in self.main.all_runs()})

    @property
    def groups(self) -> tuple[ComparisonGroup, ...]:
        """The main group and the others."""
        return (self.main, *self.others)


def collect_evidence(paths: Iterable[Path]) -> Evidence:
    """Read folders and decide what may be compared.

    Raises:
        InvalidInputError: not one of them holds a finished and evaluated run; the message says of
            each what is wrong with it.
    """
    sources = Sources()
    for path in paths:
        sources.add(path)
    groups, duplicates = group_runs(sources.runs)
    left_out = [*sources.left_out, *duplicates]
    if not groups:
        found = "".join(f"\n  {one.path}: {one.reason}" for one in left_out)
        raise InvalidInputError(f"no finished and evaluated run to report on:{found}")
    in_main = {run.folder for _, _, run in groups[0].all_runs()}
    for group in groups[1:]:
        reason = f"not in the main comparison: {groups[0].difference(group)}"
        left_out += [
            LeftOut(str(run.folder), reason)
            for _, _, run in group.all_runs()
            if run.folder not in in_main  # arm A is in every group whose flags it shares
        ]
    runs = [run for group in groups for _, _, run in group.all_runs()]
    matched = [(rollouts, _run_of(rollouts, runs)) for rollouts in sources.rollouts]
    conditions = _commonest_conditions(matched, in_main)
    by_run: dict[Path, dict[str, PolicyRollouts]] = {}
    for rollouts, rolled_out in matched:
        reason = _reason_against(rollouts, rolled_out, conditions, by_run)
        if reason:
            name = f"{rollouts.file} ({rollouts.checkpoint}, corruption {rollouts.corruption})"
            left_out.append(LeftOut(name, reason))
        elif rolled_out is not None:
            by_run.setdefault(rolled_out.folder, {})[rollouts.corruption] = rollouts
    return Evidence(groups[0], tuple(groups[1:]), by_run, conditions, sources, tuple(left_out))


Matched = tuple[PolicyRollouts, FinishedRun | None]


def _commonest_conditions(
    matched: Iterable[Matched], in_main: Collection[Path]
) -> Mapping[str, Any] | None:
    """Return those that most rollouts of the main group share; of any run, where it has none."""
    known = [(rollouts, run) for rollouts, run in matched if run is not None]
    of_main = [
        (rollouts, run)
        for rollouts, run in known
        if rollouts.corruption == "none" and run.folder in in_main
    ]
    counts = Counter(_canonical(rollouts.conditions) for rollouts, _ in of_main or known)
    if not counts:
        return None
    conditions: Mapping[str, Any] = json.loads(counts.most_common(1)[0][0])
    return conditions


def _reason_against(
    rollouts: PolicyRollouts,
    run: FinishedRun | None,
    conditions: Mapping[str, Any] | None,
    by_run: Mapping[Path, Mapping[str, PolicyRollouts]],
) -> str:
    if run is None:
        checkpoint = rollouts.checkpoint_sha256[:10]
        return f"no run in this report has its checkpoint (SHA-256 {checkpoint}…)"
    if _canonical(rollouts.conditions) != _canonical(conditions):
        differing = "; ".join(_differences(conditions or {}, rollouts.conditions, _canonical))
        return f"rolled out otherwise: {differing}"
    kept = by_run.get(run.folder, {}).get(rollouts.corruption)
    if kept is not None:
        return f"{kept.file} has rollouts of the same checkpoint under the same conditions"
    return ""


def _run_of(rollouts: PolicyRollouts, runs: Iterable[FinishedRun]) -> FinishedRun | None:
    """Return the run whose last checkpoint was rolled out, by the content of the file."""
    file_name = Path(rollouts.checkpoint).name
    for run in runs:
        path = run.folder / run.checkpoint_name
        if run.checkpoint_name == file_name and path.exists():
            status = path.stat()
            if _sha256(path, status.st_size, status.st_mtime_ns) == rollouts.checkpoint_sha256:
                return run
    return None


@functools.cache
def _sha256(path: Path, num_bytes: int, changed_ns: int) -> str:
    """Return a file's hash; several results files name the same checkpoint."""
    return sha256_of_file(path)
