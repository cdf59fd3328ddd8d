"""What the report compares: the main group of runs, their rollouts, and what stays outside."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from world_modality.arms import ARMS, CONTROL_ENCODERS, arm_order
from world_modality.cache.contract import sha256_of_file
from world_modality.system.errors import InvalidInputError
from world_modality.verdict.finished_run import FinishedRun, short_hash
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

    @property
    def num_runs(self) -> int:
        """Of all arms and seeds."""
        return sum(len(seeds) for seeds in self.runs.values())

    def all_runs(self) -> list[tuple[str, int, FinishedRun]]:
        """Return arm, seed and run, in the order of tables."""
        return [
            (arm, seed, self.runs[arm][seed])
            for arm in self.arms
            for seed in sorted(self.runs[arm])
        ]

    def runs_of(self, arm: str) -> list[FinishedRun]:
        """Return an arm's runs, by seed."""
        return [run for _, run in sorted(self.runs.get(arm, {}).items())]

    def put(self, arm: str, run: FinishedRun) -> LeftOut | None:
        """Add a run, unless its place is taken."""
        kept = self.runs.setdefault(arm, {}).setdefault(run.seed, run)
        if kept is run:
            return None
        return LeftOut(
            str(run.folder), f"same arm, seed and settings as {kept.folder}, which is used"
        )

    def difference(self, other: "ComparisonGroup") -> str:
        """Say in which settings another group differs from this one."""
        parts = _differences(self.settings, other.settings)
        if self.fingerprint != other.fingerprint:
            known = _differences(_first(self).data, _first(other).data)
            hashes = f"cache {other.fingerprint[:10]} instead of {self.fingerprint[:10]}"
            parts = [*(known or [hashes]), *parts]
        return "; ".join(parts)


def group_runs(runs: Iterable[FinishedRun]) -> tuple[list[ComparisonGroup], list[LeftOut]]:
    """Put runs into groups, the largest first; runs of control encoders join the first."""
    groups: dict[str, ComparisonGroup] = {}
    left_out: list[LeftOut | None] = []
    baselines = []
    for run in runs:
        if not ARMS[run.model_type].predicts_world:
            baselines.append(run)
            continue
        key = short_hash([run.fingerprint, run.settings])
        group = groups.setdefault(key, ComparisonGroup(run.fingerprint, run.settings))
        left_out.append(group.put(run.arm, run))
    left_out += _place_baselines(baselines, groups)
    # A stable sort: of two equally large groups the one that was named first is compared.
    ordered = sorted(groups.values(), key=lambda group: -group.num_runs)
    if ordered:
        ordered = [ordered[0], *(g for g in ordered[1:] if not _joins_as_control(g, ordered[0]))]
    return ordered, [one for one in left_out if one is not None]


def _place_baselines(
    runs: list[FinishedRun], groups: dict[str, ComparisonGroup]
) -> list[LeftOut | None]:
    """Add arm A, which no future-token flag changes, to every group that has its other flags."""
    left_out: list[LeftOut | None] = []
    for run in runs:
        fitting = [
            group
            for group in groups.values()
            if group.fingerprint == run.fingerprint and _agree(run.settings, group.settings)
        ]
        if not fitting:
            key = short_hash([run.fingerprint, run.settings])
            fitting = [groups.setdefault(key, ComparisonGroup(run.fingerprint, run.settings))]
        left_out += [group.put(run.arm, run) for group in fitting]
    return left_out


def _joins_as_control(group: ComparisonGroup, main: ComparisonGroup) -> bool:
    """Add a control encoder's A to the main group, where only encoder and codebook differ."""
    if set(group.runs) != {"A"} or not _agree(group.settings, main.settings):
        return False
    mine, theirs = _first(group).data, _first(main).data
    name = CONTROL_ENCODERS.get(str(mine["encoder"]))
    if name is None or mine["encoder"] == theirs["encoder"]:
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


def _first(group: ComparisonGroup) -> FinishedRun:
    return group.all_runs()[0][2]


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {_shown(theirs.get(name))} instead of {_shown(mine.get(name))}"
        for name in sorted((mine.keys() | theirs.keys()) - {"world_tokens"})
        if mine.get(name) != theirs.get(name)
    ]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:10]
    return text if len(text) <= 60 else f"{text[:57]}…"


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
    joined = _Joined.of(sources, groups)
    in_main = {run.folder for _, _, run in groups[0].all_runs()}
    for group in groups[1:]:
        reason = f"not in the main comparison: {groups[0].difference(group)}"
        left_out += [
            LeftOut(str(run.folder), reason)
            for _, _, run in group.all_runs()
            if run.folder not in in_main  # arm A is in every group whose flags it shares
        ]
    return Evidence(
        main=groups[0],
        others=tuple(groups[1:]),
        rollouts=joined.by_run,
        conditions=joined.conditions,
        sources=sources,
        left_out=tuple(left_out + joined.left_out),
    )


@dataclass
class _Joined:
    """Rollouts put to the runs whose checkpoints they are of."""

    conditions: Mapping[str, Any] | None
    by_run: dict[Path, dict[str, PolicyRollouts]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    @classmethod
    def of(cls, sources: Sources, groups: list[ComparisonGroup]) -> "_Joined":
        runs = [run for group in groups for _, _, run in group.all_runs()]
        matched = [(rollouts, _run_of(rollouts, runs)) for rollouts in sources.rollouts]
        main = {run.folder for _, _, run in groups[0].all_runs()}
        counts = Counter(
            _canonical(rollouts.conditions)
            for rollouts, run in matched
            if run is not None and rollouts.corruption == "none" and run.folder in main
        ) or Counter(_canonical(rollouts.conditions) for rollouts, run in matched if run)
        chosen = max(counts, key=lambda key: counts[key]) if counts else None
        joined = cls(None if chosen is None else json.loads(chosen))
        for rollouts, run in matched:
            joined._put(rollouts, run, chosen)
        return joined

    def _put(self, rollouts: PolicyRollouts, run: FinishedRun | None, chosen: str | None) -> None:
        name = f"{rollouts.file} ({rollouts.checkpoint}, corruption {rollouts.corruption})"
        if run is None:
            reason = (
                f"no run in this report has its checkpoint (SHA-256 "
                f"{rollouts.checkpoint_sha256[:10]}…)"
            )
            self.left_out.append(LeftOut(name, reason))
        elif _canonical(rollouts.conditions) != chosen:
            differing = _differing(rollouts.conditions, self.conditions or {})
            self.left_out.append(LeftOut(name, f"rolled out otherwise: {differing}"))
        elif rollouts.corruption in self.by_run.setdefault(run.folder, {}):
            kept = self.by_run[run.folder][rollouts.corruption].file
            reason = f"{kept} has rollouts of the same checkpoint under the same conditions"
            self.left_out.append(LeftOut(name, reason))
        else:
            self.by_run[run.folder][rollouts.corruption] = rollouts


def _run_of(rollouts: PolicyRollouts, runs: list[FinishedRun]) -> FinishedRun | None:
    """Return the run whose last checkpoint was rolled out, by the content of the file."""
    file_name = Path(rollouts.checkpoint).name
    for run in runs:
        path = run.folder / run.checkpoint_name
        if (
            run.checkpoint_name == file_name
            and path.exists()
            and _sha256(path) == rollouts.checkpoint_sha256
        ):
            return run
    return None


_HASHES: dict[tuple[Path, int, int], str] = {}


def _sha256(path: Path) -> str:
    # Several results files name the same checkpoint.
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _HASHES:
        _HASHES[key] = sha256_of_file(path)
    return _HASHES[key]


def _canonical(conditions: Mapping[str, Any]) -> str:
    return json.dumps(conditions, sort_keys=True)


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name} {json.dumps(theirs.get(name), sort_keys=True)} instead of "
        f"{json.dumps(ours.get(name), sort_keys=True)}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    )
