"""Runs that may be compared: one cache, one split, one rendering, the same flags."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from world_modality.arms import ARMS, CONTROL_ENCODERS, arm_order
from world_modality.verdict.finished_run import FinishedRun, short_hash
from world_modality.verdict.sources import LeftOut

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
