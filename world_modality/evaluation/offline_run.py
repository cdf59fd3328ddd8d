"""A checkpoint opened on the cache it was trained on, at its validation frames."""

import dataclasses
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from world_modality.cache.change_codebook import change_record
from world_modality.cache.contract import Cache, sha256_of_json
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.cache.hub_cache import open_cache
from world_modality.evaluation.offline_config import OfflineConfig
from world_modality.policy.checkpoint import Checkpoint, load_checkpoint
from world_modality.policy.network import WorldPolicy
from world_modality.policy.predictions import FrameErrors
from world_modality.source.episodes import labelled_episodes
from world_modality.statistics.intervals import Interval, ratio_interval, sum_by_episode
from world_modality.system.atomic import write_json
from world_modality.system.cli import write_config
from world_modality.system.device import resolve_device
from world_modality.tokens.control_tokens import TokenControl
from world_modality.tokens.corruption import RecordedTokens
from world_modality.tokens.privileged_tokens import PrivilegedCodebook


@dataclass(frozen=True)
class OfflineRun:
    """What offline stages evaluate.

    Attributes:
        path: the checkpoint's file.
        checkpoint: its content.
        cache: the cache it was trained on, checked by fingerprint.
        tensors: the cache's arrays on the device.
        policy: in evaluation mode on the same device.
        train_ids, val_ids: `episode_index` values of the training and the validation episodes.
    """

    path: Path
    checkpoint: Checkpoint
    cache: Cache
    tensors: FrameTensors
    policy: WorldPolicy
    train_ids: list[int]
    val_ids: list[int]

    @classmethod
    def open(cls, config: OfflineConfig) -> "OfflineRun":
        """Load a checkpoint and its cache.

        Raises:
            MissingFileError: checkpoint or cache are missing.
            InvalidInputError: one is damaged, or they do not belong together.
        """
        cache = open_cache(config)
        device = resolve_device(config.device)
        checkpoint = load_checkpoint(config.checkpoint, device)
        checkpoint.require_cache(cache)
        split = cache.manifest["split"]
        return cls(
            path=config.checkpoint,
            checkpoint=checkpoint,
            cache=cache,
            tensors=FrameTensors.from_cache(
                cache,
                device,
                with_language=checkpoint.policy_config.reads_language,
                futures=checkpoint.train_config.futures,
                num_change_tokens=checkpoint.policy_config.frame.num_change_tokens,
            ),
            policy=checkpoint.build_policy(device),
            train_ids=split["train"],
            val_ids=split["val"],
        )

    @cached_property
    def val_frames(self) -> Int[np.ndarray, " M"]:
        """All frames of the validation episodes."""
        return self.tensors.episodes.frames_of(self.val_ids)

    @property
    def val_tasks(self) -> list[int]:
        """The `task_index` of each validation episode."""
        episodes = self.tensors.episodes
        return [int(task) for task in episodes.tasks[episodes.positions_of(self.val_ids)]]

    @cached_property
    def labelled_ids(self) -> list[int]:
        """The training episodes whose actions the policy was trained on."""
        trained = self.checkpoint.train_config
        return labelled_episodes(
            self.tensors.episodes, self.train_ids, trained.labelled_fraction, trained.seed
        )

    @cached_property
    def _train_frames(self) -> Int[np.ndarray, " M2"]:
        return self.tensors.episodes.frames_of(self.train_ids)

    @cached_property
    def tokens(self) -> Int[np.ndarray, " N *W"]:
        """The recorded world tokens."""
        return self.tensors.world_tokens.cpu().numpy()

    @cached_property
    def recorded_tokens(self) -> RecordedTokens:
        """What the validation frames' tokens are corrupted with."""
        own_tokens = self._own_tokens
        return RecordedTokens(
            self.tokens if own_tokens is None else own_tokens,
            self.tensors.episodes,
            self.val_frames,
            self._train_frames,
            self.policy.config.window.world_lags,
        )

    @cached_property
    def _own_tokens(self) -> Int[np.ndarray, " N *W"] | None:
        """What the arm reads that reads the true state; None for all others."""
        if self.checkpoint.train_config.token_control != "privileged":
            return None
        arrays = {name: one.cpu().numpy() for name, one in self.checkpoint.cache_arrays.items()}
        return PrivilegedCodebook.from_arrays(arrays).tokens(self.cache)

    def input_tokens(
        self, corrupted: Int[np.ndarray, " M *RW"] | None = None
    ) -> Int[np.ndarray, " M *RW"] | None:
        """Return what the policy reads at the validation frames; None where it reads their own.

        Args:
            corrupted: given instead of these tokens; a control arm that does not read its own
                token does not notice.
        """
        if corrupted is not None and self._token_control.reads_own_token:
            return corrupted
        return self.tokens_read_instead(self.val_frames)

    def tokens_read_instead(
        self, frames: Int[np.ndarray, " M"]
    ) -> Int[np.ndarray, " M *RW"] | None:
        """Return what a control arm reads at these frames; None where it reads their own."""
        return self._token_control.evaluation_tokens(frames, self.policy.config.window)

    @cached_property
    def _token_control(self) -> TokenControl:
        trained = self.checkpoint.train_config
        return TokenControl(
            trained.token_control,
            self.tensors,
            self._train_frames,
            trained.seed,
            own_tokens=self._own_tokens,
            oracle_target=self.policy.config.oracle_target,
        )

    @cached_property
    def _episode_of_frame(self) -> Int[np.ndarray, " N"]:
        # Every metric of every horizon adds up over it.
        return self.tensors.episodes.of_frame

    @property
    def num_world_tokens(self) -> int:
        """Codebook size V."""
        return self.policy.config.frame.world.num_world_tokens

    @property
    def num_world_slots(self) -> int:
        """World tokens a frame W."""
        return self.policy.config.frame.world.num_world_slots

    def describe(self) -> dict[str, object]:
        """Return what every report of this run states about it."""
        encoder = self.cache.manifest["encoder"]
        return {
            "checkpoint": str(self.path),
            "model_type": self.policy.config.model_type,
            "token_control": self.checkpoint.train_config.token_control,
            "epoch": self.checkpoint.epoch,
            "dataset_name": self.cache.dataset_name,
            "cache_fingerprint": self.checkpoint.cache_fingerprint,
            "encoder": encoder["name"],
            "encoder_note": encoder.get("note"),
            "num_val_episodes": len(self.val_ids),
            "num_val_frames": len(self.val_frames),
            "seed": self.checkpoint.train_config.seed,
            **self._labels_record(),
            **(
                {"change_tokens": change_record(self.cache.manifest)}
                if self.policy.config.predicts("change_token")
                else {}
            ),
            "data": self._data_record(),
            "versions": {name: version(name) for name in ("torch", "numpy")}
            | {"python": platform.python_version()},
        }

    def _labels_record(self) -> dict[str, object]:
        """Return which episodes had labels; nothing where all had them."""
        if self.checkpoint.train_config.labelled_fraction == 1:
            return {}
        return {"labelled_episodes": self.labelled_ids, "num_train_episodes": len(self.train_ids)}

    def _data_record(self) -> dict[str, object]:
        """Return what two caches have to share for their policies to be compared."""
        manifest = self.cache.manifest
        dataset, codebook = manifest["dataset"], manifest["codebook"]
        recording = dataset.get("recording") or {}
        split = {"train": self.train_ids, "val": self.val_ids}
        return {
            "dataset": dataset.get("content_sha256") or dataset.get("revision"),
            "split": sha256_of_json(split),
            "rendering": recording.get("rendering"),
            "world_tokens": manifest["arrays"]["world_tokens"]["sha256"],
            "codebook_tokens": codebook["num_tokens"],
            "codebook_seed": codebook.get("seed"),
            "pooling": manifest["encoder"].get("pooling"),
            **_observation_data(manifest.get("observation")),
            **self._slots_record(codebook),
        }

    def _slots_record(self, codebook: Mapping[str, Any]) -> dict[str, object]:
        """Return how a frame comes to have several world tokens; nothing where it has one."""
        if self.num_world_slots == 1:
            return {}
        own = {f"codebook_{name}": codebook.get(name) for name in ("slots", "kind")}
        return {"num_world_slots": self.num_world_slots, **own}

    def mean_over_frames(
        self,
        frames: Int[np.ndarray, " M"],
        values: Shaped[np.ndarray, " M"],
        counts: Shaped[np.ndarray, " M"],
        seed: int,
    ) -> Interval:
        """Return sum(values) / sum(counts) with an interval over episodes."""
        position = self._episode_of_frame[frames]
        num_episodes = len(self.tensors.episodes)
        return ratio_interval(
            sum_by_episode(values, position, num_episodes),
            sum_by_episode(counts, position, num_episodes),
            seed,
        )

    @property
    def episode_counts(self) -> Float[np.ndarray, " E"]:
        """Count the chunk steps inside each validation episode that its predictions are scored on.

        The frame with n frames left, itself included, has min(H, n) of them.
        """
        episodes, chunk = self.tensors.episodes, self.policy.config.window.chunk_size
        lengths = episodes.lengths[episodes.positions_of(self.val_ids)]
        return np.array([np.minimum(chunk, np.arange(1, n + 1)).sum() for n in lengths], float)

    def episode_sums(self, errors: FrameErrors) -> Float[np.ndarray, " E"]:
        """Return each validation episode's summed squared action error (standardised)."""
        return self.sum_by_val_episode(errors.frames, errors.squared_error.sum(axis=1))

    def sum_by_val_episode(
        self, frames: Int[np.ndarray, " M"], values: Shaped[np.ndarray, " M"]
    ) -> Float[np.ndarray, " E"]:
        """Add up per-frame values within each validation episode."""
        sums = sum_by_episode(values, self._episode_of_frame[frames], len(self.tensors.episodes))
        return sums[self.tensors.episodes.positions_of(self.val_ids)]


def _observation_data(section: Mapping[str, Any] | None) -> dict[str, object]:
    """Return what views and cells the policy reads, where there is more than one pooled vector."""
    if section is None:
        return {}
    components = section["components"] or {}
    data = {name: section[name] for name in ("image_keys", "grid_size")}
    return {"observation": {**data, "num_components": components.get("num_components")}}


def write_report(
    config: OfflineConfig, report: str, result: Any, plot: Callable[[dict[str, Any], Path], None]
) -> None:
    """Write flags, result and plot into the folder of this report, and print where they are."""
    out_dir, content = config.report_dir(report), dataclasses.asdict(result)
    write_config(config, out_dir / "config.json")
    write_json(out_dir / f"{report}.json", content)
    plot(content, out_dir / f"{report}.png")
    print(f"report: {out_dir / f'{report}.json'}\nplot: {out_dir / f'{report}.png'}")


def print_header(described: dict[str, object]) -> None:
    """Print what a report is about, and that the encoder is a stand-in where it is one."""
    print(
        f"{described['checkpoint']} (model {described['model_type']}) on "
        f"{described['num_val_episodes']} held-out episodes, {described['num_val_frames']} frames"
    )
    if described["encoder_note"]:
        print(f"note: {described['encoder_note']}")
