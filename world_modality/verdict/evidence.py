"""What the report compares: the main group of runs, their rollouts, and what stays outside."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from world_modality.cache.contract import sha256_of_file
from world_modality.system.errors import InvalidInputError
from world_modality.verdict.comparison_group import ComparisonGroup, group_runs
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.rollout_file import PolicyRollouts
from world_modality.verdict.sources import LeftOut, Sources


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
