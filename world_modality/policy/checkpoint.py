"""Checkpoints: one file that resumes a training run, or rolls out its policy without the cache.

The file is a torch archive that carries its own SHA-256. What `torch.save` writes is a ZIP file of
which torch checks no checksum: a flipped bit in a weight loads as another weight. Here the digest
of the file becomes the archive's comment, so that it cannot be parted from what it vouches for;
other programs' `torch.load` reads the file as before.
"""

import hashlib
import json
import os
import pickle
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from jaxtyping import Int, Int32
from torch import Tensor

from world_modality.cache.change_codebook import change_record
from world_modality.cache.contract import CHANGE_COMMAND, Cache, require_arrays
from world_modality.cache.manifest_differences import differences
from world_modality.policy.config import (
    PolicyConfig,
    TrainConfig,
    flags_of,
    stored_config,
    stored_train_config,
)
from world_modality.policy.network import WorldPolicy
from world_modality.source.episodes import Episodes
from world_modality.system.atomic import replacing
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.tokens.token_streams import TokenStreams

# 2: the file ends with its SHA-256, and may have been made within an epoch.
FORMAT = "world-modality-checkpoint/2"
# A ZIP file ends with the length of its comment (two bytes, little-endian), then the comment.
_LENGTH_BYTES = 2
_COMMENT = re.compile(rb"sha256:[0-9a-f]{64}")
_COMMENT_BYTES = len("sha256:") + 64
_BLOCK_BYTES = 2**20
# Sections of a manifest of which two caches' differences are shown, at most so many.
_COMPARED = ("dataset", "encoder", "observation", "codebook")
_SHOWN = 3


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        policy_config: the policy's whole configuration.
        train_config: the training run's whole configuration.
        epoch: how many epochs are done.
        global_step: how many optimiser steps are done, those of an unfinished epoch included.
        model: the policy's weights and statistics.
        training_state: optimiser, random states, losses of an unfinished epoch; for resuming.
        manifest: the cache's manifest at training time (encoder, codebook, split, rendering).
        cache_fingerprint: of the cache that it was trained on.
        cache_arrays: of the quantiser, of the encoder where it was fitted to the data, and
            `train_token_counts`, see `train_token_counts()`; of an arm that reads world tokens
            those of whole training episodes, too (`TokenStreams`); of one that reads the true
            state the codebook of it (`PrivilegedCodebook`).
        auxiliary_head: a further head's name, record and weights; None without one.
        further_flags: what the stage that trains a further head adds to `train_config`, by flag.
    """

    policy_config: PolicyConfig
    train_config: TrainConfig
    epoch: int
    global_step: int
    model: dict[str, Tensor]
    training_state: dict[str, Any]
    manifest: dict[str, Any]
    cache_fingerprint: str
    cache_arrays: dict[str, Tensor]
    auxiliary_head: dict[str, Any] | None = None
    further_flags: dict[str, Any] = field(default_factory=dict)

    @property
    def train_flags(self) -> dict[str, Any]:
        """All flags that the training was started with."""
        return {**flags_of(self.train_config), **self.further_flags}

    def build_policy(self, device: torch.device) -> WorldPolicy:
        """Rebuild the trained policy in evaluation mode."""
        policy = WorldPolicy(self.policy_config)
        policy.load_state_dict(self.model)
        return policy.to(device).eval()

    def require_cache(self, cache: Cache) -> None:
        """Check that a cache is the one that this policy was trained on.

        Raises:
            InvalidInputError: says which part of the cache differs.
        """
        with_language = self.policy_config.reads_language
        needs_changes = "change_token" in self.train_config.futures
        if cache.fingerprint(with_language=with_language) == self.cache_fingerprint:
            if needs_changes and change_record(cache.manifest) != change_record(self.manifest):
                raise InvalidInputError(
                    f"the checkpoint predicts other change tokens than those in {cache.folder}; "
                    f"run {CHANGE_COMMAND} --dataset_name {cache.dataset_name} --cache_dir "
                    f"{cache.cache_dir} with the flags that it was trained on, or train again"
                )
            return
        there, here = self.manifest, cache.manifest
        sections = [
            name
            for name in (*_COMPARED, "split", "text", "arrays")
            if here.get(name) != there.get(name)
        ]
        shown = differences(*({name: m.get(name) for name in _COMPARED} for m in (there, here)))
        details = f" ({'; '.join(shown[:_SHOWN])})" if shown else ""
        raise InvalidInputError(
            f"the checkpoint was trained on another cache than {cache.folder}: "
            f"{', '.join(sections)} differ{details}; "
            f"give the cache it was trained on ({there['dataset'].get('name')}), or train again"
        )


def checkpoint_arrays(
    cache: Cache,
    *,
    with_streams: bool = False,
    own_tokens: Int[np.ndarray, " N *W"] | None = None,
) -> dict[str, Tensor]:
    """Return the arrays of the cache that a rollout needs besides the weights.

    Args:
        cache: that is trained on.
        with_streams: whether the policy reads world tokens, and may be given another episode's.
        own_tokens: of all frames, where the policy reads others than the cache's.
    """
    arrays = {name: np.array(cache.load(name)) for name in cache.model_arrays}
    arrays["train_token_counts"] = train_token_counts(cache, own_tokens)
    if with_streams:
        tokens, episodes = _tokens_and_episodes(cache, own_tokens)
        train_ids, rows = cache.manifest["split"]["train"], _task_rows(cache)
        arrays |= TokenStreams.of_training(tokens, episodes, train_ids, rows).arrays()
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def train_token_counts(
    cache: Cache, own_tokens: Int[np.ndarray, " N *W"] | None = None
) -> Int32[np.ndarray, "num_tasks *W V"]:
    """Count how often training episodes have each world token, per task (and slot).

    Rows are in the order of the manifest's `dataset.tasks`. Validation frames are left out, so that
    a rollout that draws tokens from these counts knows no more than the policy does.
    """
    every, episodes = _tokens_and_episodes(cache, own_tokens)
    frames = episodes.frames_of(cache.manifest["split"]["train"])
    rows = _task_rows(cache)
    tokens, task_index = every[frames], cache.load("task_index")[frames]
    tasks = np.array([rows[task] for task in task_index.tolist()], dtype=int)
    counts = np.zeros((len(rows), *tokens.shape[1:], cache.num_tokens), dtype=np.int32)
    if tokens.ndim == 1:
        np.add.at(counts, (tasks, tokens), 1)
    else:
        np.add.at(counts, (tasks[:, None], np.arange(tokens.shape[1]), tokens), 1)
    return counts


def _tokens_and_episodes(
    cache: Cache, own_tokens: Int[np.ndarray, " N *W"] | None
) -> tuple[Int[np.ndarray, " N *W"], Episodes]:
    arrays = require_arrays(cache, ("world_tokens", "episode_index", "task_index"))
    episodes = Episodes.from_frames(
        arrays["episode_index"], arrays["task_index"], cache.episode_ids
    )
    return arrays["world_tokens"] if own_tokens is None else own_tokens, episodes


def _task_rows(cache: Cache) -> dict[int, int]:
    """Return the row of each `task_index` in the order of the manifest's `dataset.tasks`."""
    return {int(task): row for row, task in enumerate(cache.manifest["dataset"]["tasks"])}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically, with its SHA-256; it holds tensors, numbers and text only."""
    content = {
        "format": FORMAT,
        "policy_config": flags_of(checkpoint.policy_config),
        "train_config": checkpoint.train_flags,
        "epoch": checkpoint.epoch,
        "global_step": checkpoint.global_step,
        "model": checkpoint.model,
        "training_state": checkpoint.training_state,
        "manifest": json.dumps(checkpoint.manifest),
        "cache_fingerprint": checkpoint.cache_fingerprint,
        "cache_arrays": checkpoint.cache_arrays,
        "auxiliary_head": checkpoint.auxiliary_head,
    }
    with replacing(path) as partial, partial.open("wb") as file:
        save_sealed(content, file)


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read a checkpoint without executing anything that it contains.

    Raises:
        MissingFileError: no such file; the message lists the checkpoints beside it.
        InvalidInputError: no checkpoint of this project, damaged, or not loadable safely.
    """
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.pt")) if path.parent.is_dir() else []
        raise MissingFileError(
            f"no checkpoint {path}; in {path.parent} there are: {', '.join(beside) or 'none'}"
        )
    with path.open("rb") as file:
        require_intact(file, path)
        try:
            content = torch.load(file, map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
            reason = next(iter(str(error).splitlines()), "empty file")
            raise InvalidInputError(
                f"{path} is not a checkpoint of tensors and plain values ({reason}); use an "
                "earlier checkpoint, or train again"
            ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InvalidInputError(f"{path} has format {found!r}, expected {FORMAT!r}")
    del content["format"]
    lacking = {one.name for one in fields(Checkpoint)} - content.keys() - {"further_flags"}
    if lacking:
        raise InvalidInputError(f"{path} lacks {', '.join(sorted(lacking))}; train again")
    content["policy_config"] = stored_config(PolicyConfig, content["policy_config"])
    content["train_config"], further_flags = stored_train_config(content["train_config"])
    content["manifest"] = json.loads(content["manifest"])
    return Checkpoint(**content, further_flags=further_flags)


@dataclass(frozen=True, order=True)
class RunPosition:
    """How far a run has come.

    Attributes:
        epoch: how many epochs are done.
        epoch_step: how many optimiser steps of the next one are done.
    """

    epoch: int
    epoch_step: int = 0

    def file_name(self, model_type: str) -> str:
        """Return the name of the checkpoint that is made here."""
        if self.epoch_step == 0:
            return f"model_{model_type}_epoch{self.epoch - 1}.pt"
        return f"model_{model_type}_epoch{self.epoch}_step{self.epoch_step}.pt"


def checkpoint_path(log_dir: Path, model_type: str, epoch: int) -> Path:
    """Return where the checkpoint after `epoch` (counted from 0) is kept."""
    return log_dir / RunPosition(epoch + 1).file_name(model_type)


def newest_first(log_dir: Path, model_type: str) -> list[Path]:
    """Return an arm's checkpoints, the one that has come farthest first."""
    found = {
        _position(match): path
        for path in log_dir.glob(f"model_{model_type}_epoch*.pt")
        if (match := re.fullmatch(rf"model_{model_type}_epoch(\d+)(?:_step(\d+))?\.pt", path.name))
    }
    return [found[position] for position in sorted(found, reverse=True)]


def _position(match: re.Match[str]) -> RunPosition:
    if match[2] is None:
        return RunPosition(int(match[1]) + 1)
    return RunPosition(int(match[1]), int(match[2]))


class _SealedWriter:
    """A file that `torch.save` writes to; `seal` then adds the digest of what was written.

    Args:
        file: open for writing, at its beginning.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        # The archive's last bytes are replaced by `seal`, so they are not part of the digest.
        self._held_back = b""

    def write(self, content: bytes | memoryview) -> int:
        """Append to the archive."""
        if len(content) >= _LENGTH_BYTES:
            self._digest.update(self._held_back)
            self._digest.update(content[:-_LENGTH_BYTES])
            self._held_back = bytes(content[-_LENGTH_BYTES:])
        else:
            seen = self._held_back + bytes(content)
            self._digest.update(seen[:-_LENGTH_BYTES])
            self._held_back = seen[-_LENGTH_BYTES:]
        return self._file.write(content)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()

    def seal(self) -> None:
        """Write the digest as the archive's comment.

        Raises:
            ValueError: what was written is no ZIP file without a comment.
        """
        if self._held_back != bytes(_LENGTH_BYTES):
            raise ValueError(f"expected an archive without a comment, got {self._held_back!r}")
        self._file.seek(-_LENGTH_BYTES, os.SEEK_END)
        comment = f"sha256:{self._digest.hexdigest()}".encode()
        self._file.write(len(comment).to_bytes(_LENGTH_BYTES, "little") + comment)


def save_sealed(content: Any, file: IO[bytes]) -> None:
    """Do what `torch.save` does, and add the digest.

    Args:
        content: tensors and plain values.
        file: open for writing, at its beginning.

    Raises:
        OSError: the disk is full or gone.
    """
    writer = _SealedWriter(file)
    try:
        torch.save(content, cast("IO[bytes]", writer))  # of which torch uses two methods
        writer.seal()
    except RuntimeError as error:
        # torch covers a failed write ("no space left") with its own "unexpected pos 64 vs 0".
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def require_intact(file: IO[bytes], path: Path) -> None:
    """Check an archive against the digest that it carries; the file is at its beginning afterwards.

    Args:
        file: open for reading.
        path: its name, for messages.

    Raises:
        InvalidInputError: it has no digest, or another one.
    """
    size = file.seek(0, os.SEEK_END)
    covered = size - _COMMENT_BYTES - _LENGTH_BYTES
    file.seek(max(covered, 0))
    tail = file.read()
    length, comment = tail[:_LENGTH_BYTES], tail[_LENGTH_BYTES:]
    expected_length = _COMMENT_BYTES.to_bytes(_LENGTH_BYTES, "little")
    if covered < 0 or length != expected_length or not _COMMENT.fullmatch(comment):
        raise InvalidInputError(
            f"{path} is damaged or not a checkpoint of this project: it does not end with its "
            "SHA-256; use an earlier checkpoint, or train again"
        )
    file.seek(0)
    digest = hashlib.sha256()
    while covered > 0:
        block = file.read(min(_BLOCK_BYTES, covered))
        digest.update(block)
        covered -= len(block)
    if f"sha256:{digest.hexdigest()}".encode() != comment:
        raise InvalidInputError(
            f"{path} is damaged: its content does not have the SHA-256 that it ends with; use an "
            "earlier checkpoint, or train again"
        )
    file.seek(0)
