"""`results.jsonl`: one line per finished episode, whole or not there."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from benchmarks.rollouts.worker import Outcome
from benchmarks.suite import EpisodeSpec
from world_modality.system.atomic import LineFile
from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock
from world_modality.tokens.corruption import read_corruption

_OF_OUTAGE = {"outage_start": None, "outage_length": 0}

EpisodeKey = tuple[str, str, int]
"""SHA-256 of the checkpoint, task, number of the episode."""


@dataclass(frozen=True)
class RolloutOrigin:
    """What all episodes of a checkpoint share.

    Attributes:
        checkpoint: its path as it was given.
        checkpoint_sha256: of its file; identifies it wherever it lies.
        model_type: the arm.
        policy: the policy's record, which decides its actions.
        suite: name of the benchmark suite.
        versions: package to version.
        gl_backend: what renders.
        rendering: settings of the images.
        world_corruption: what was done to the world token.
    """

    checkpoint: str
    checkpoint_sha256: str
    model_type: str
    policy: dict[str, Any]
    suite: str
    versions: dict[str, str]
    gl_backend: str
    rendering: dict[str, Any]
    world_corruption: str


@dataclass(frozen=True)
class RolloutResult(RolloutOrigin):
    """How one episode went, and all that it depends on.

    Attributes:
        success: None if the episode ended in an error.
        num_steps: executed actions; for an error, as far as is known.
        seconds: since the episode's reset, waiting for the policy included.
        error: type, message and last lines of the traceback; None where there was none.
        outage_start, outage_length: of the episode; a line has them only where there is an outage.
    """

    task: str
    instruction: str
    episode: int
    initial_state: int
    seed: int
    max_steps: int
    success: bool | None
    num_steps: int
    seconds: float
    error: str | None
    outage_start: int | None = None
    outage_length: int = 0

    @classmethod
    def of(cls, origin: RolloutOrigin, outcome: Outcome) -> "RolloutResult":
        """Put together what a checkpoint's episodes share and how one of them ended."""
        return cls(
            **asdict(origin),
            **asdict(outcome.episode),
            success=outcome.success,
            num_steps=outcome.num_steps,
            seconds=round(outcome.seconds, 3),
            error=outcome.error,
        )

    @property
    def key(self) -> EpisodeKey:
        """What tells it from other episodes; of several lines with one key the last counts."""
        return self.checkpoint_sha256, self.task, self.episode


@contextmanager
def open_results(path: Path) -> Iterator["ResultsFile"]:
    """Open a results file, or create an empty one; meanwhile it belongs to this process.

    Raises:
        InvalidInputError: another process is writing to its folder.
    """
    with OutputLock(path.parent, "--out_dir"), closing(LineFile(path)) as file:
        yield ResultsFile(path, file)


@dataclass(frozen=True)
class ResultsFile:
    """The results of one folder, opened by `open_results`."""

    path: Path
    _file: LineFile = field(repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing yet."""
        return self._file.num_bytes == 0

    def read(self) -> list[RolloutResult]:
        """Return the newest result of each episode, after mending a last line that was cut off.

        Raises:
            InvalidInputError: a line is no result.
        """
        # A kill in the middle of a write leaves a line without its end; that episode runs again.
        self._file.cut_torn_line()
        newest: dict[EpisodeKey, RolloutResult] = {}
        for number, line in enumerate(self.path.read_bytes().splitlines(), start=1):
            result = _parse(line, f"{self.path} line {number}")
            newest[result.key] = result
        return list(newest.values())

    def append(self, result: RolloutResult) -> None:
        """Write a line and bring it to the disk.

        Raises:
            OSError: the disk is full; the file is as it was.
        """
        line = asdict(result)
        if not result.outage_length:
            line = {name: value for name, value in line.items() if name not in _OF_OUTAGE}
        self._file.append([json.dumps(line, allow_nan=False)])

    def clear(self) -> None:
        """Delete all results."""
        self._file.clear()


def require_same_settings(
    earlier: Iterable[RolloutResult],
    origins: Sequence[RolloutOrigin],
    episodes: Iterable[EpisodeSpec],
    path: Path,
) -> None:
    """Check that earlier results, of the file `path`, were made with the settings of now.

    Episodes and checkpoints that are not rolled out now may be among them.

    Raises:
        InvalidInputError: they were not; the message names what differs.
    """
    by_sha256 = {origin.checkpoint_sha256: origin for origin in origins}
    by_path = {origin.checkpoint: origin for origin in origins}
    by_episode = {(episode.task, episode.episode): episode for episode in episodes}
    differences: dict[str, str] = {}
    for result in earlier:
        origin = by_sha256.get(result.checkpoint_sha256)
        others = {"checkpoint"}  # the same file may lie elsewhere now
        if origin is None:
            origin, others = by_path.get(result.checkpoint, origins[0]), set()
            if origin.checkpoint != result.checkpoint:
                others = {"checkpoint", "checkpoint_sha256", "model_type", "policy"}
        wanted = {k: v for k, v in asdict(origin).items() if k not in others}
        episode = by_episode.get((result.task, result.episode))
        if episode is not None:
            wanted |= asdict(episode)
        now, before = _flat(wanted), _flat({k: getattr(result, k) for k in wanted})
        for name in sorted(now.keys() | before.keys()):
            if now.get(name) != before.get(name):
                text = f"{name} is {_text(now, name)} now and was {_text(before, name)}"
                differences.setdefault(name, text)
    if differences:
        raise InvalidInputError(
            f"{path} holds results made with other settings: {'; '.join(differences.values())}. "
            "Give those again, another --out_dir, or --overwrite to delete them and start again"
        )


def _parse(line: bytes, where: str) -> RolloutResult:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{where} is no JSON ({str(error)[:100]}); delete that line, or start again with "
            "--overwrite"
        ) from error
    hints = get_type_hints(RolloutResult)
    if isinstance(content, dict) and not content.keys() & _OF_OUTAGE.keys():
        content |= _OF_OUTAGE
    if not isinstance(content, dict) or set(content) != set(hints):
        found = sorted(content) if isinstance(content, dict) else content
        raise InvalidInputError(
            f"{where} is no result of a rollout, which has the fields {sorted(hints)}; found "
            f"{found}. Give another --out_dir, or start again with --overwrite"
        )
    for name, hint in hints.items():
        if not _is_of(content[name], hint):
            raise InvalidInputError(
                f"{where} has {name} {content[name]!r}, which no rollout writes; delete that line, "
                "or start again with --overwrite"
            )
    content["world_corruption"] = str(read_corruption(content["world_corruption"], where))
    if "corrupt_world" in content["policy"]:
        spelled = str(read_corruption(content["policy"]["corrupt_world"], where))
        content["policy"]["corrupt_world"] = spelled
    return RolloutResult(**content)


def _is_of(value: object, hint: Any) -> bool:
    """Tell whether a JSON value has a field's type; an integer may stand for a float, True not."""
    types = get_args(hint) if isinstance(hint, UnionType) else (get_origin(hint) or hint,)
    return type(value) in types or (hint is float and type(value) is int)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _text(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "absent"
