"""What `config.json` of an exported policy holds, as LeRobot reads it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lerobot.configs.policies import PreTrainedConfig

from world_modality.export.policy_record import CONFIG_FILE, POLICY_TYPE, PolicyRecord
from world_modality.system.errors import InvalidInputError

NO_TRAINING = (
    "a world_modality policy is not trained by LeRobot: train it with train_baseline_a.py, "
    "train_baseline_b.py or train_model_c.py of world-modality-vla, and export the checkpoint "
    "with python -m world_modality.export_policy --checkpoint … --out_dir …"
)


@PreTrainedConfig.register_subclass(POLICY_TYPE)
@dataclass
class WorldModalityConfig(PreTrainedConfig):
    """Configuration of an exported policy; what may be set on a command line, and its record.

    Attributes:
        n_action_steps: actions of a chunk that are executed before the policy is asked again.
        temporal_ensemble_coeff: m of ACT's temporal ensembling, as in LeRobot's ACT; it wants
            `n_action_steps` 1.
        action_range: what actions are clipped to; None leaves them as they are.
        vision_model_name: the vision encoder's folder or hub name where it has moved since.
        text_model_name: the same of the text model.
        trust_remote_code: run code that the vision encoder's repository brings along.
        record: what `world_modality.export` wrote; empty in a configuration of no policy.
    """

    n_action_steps: int = 1
    temporal_ensemble_coeff: float | None = None
    action_range: tuple[float, float] | None = None
    vision_model_name: str | None = None
    text_model_name: str | None = None
    trust_remote_code: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def policy_record(self) -> PolicyRecord:
        """The record, checked.

        Raises:
            NotImplementedError: there is none, since the policy is to be made from scratch.
            InvalidInputError: it is of another version, or lacks or adds an entry.
        """
        if not self.record:
            raise NotImplementedError(NO_TRAINING)
        return PolicyRecord.read(self.record, f"the record in {CONFIG_FILE}")

    @property
    def observation_delta_indices(self) -> list[int]:
        """The frames that are seen, counted from the present one."""
        return [-lag for lag in self.policy_record.policy.window.context_lags]

    @property
    def action_delta_indices(self) -> list[int]:
        """The frames whose actions are predicted, counted from the present one."""
        return list(range(self.policy_record.policy.window.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No reward is read."""
        return

    def get_optimizer_preset(self) -> Any:
        """Refuse training, which asks for this first."""
        raise NotImplementedError(NO_TRAINING)

    def get_scheduler_preset(self) -> Any:
        """Refuse training."""
        raise NotImplementedError(NO_TRAINING)

    def validate_features(self) -> None:
        """Check settings and features; not done when a file is read, where draccus hides errors.

        Raises:
            InvalidInputError: a setting is not possible, or an environment or a robot takes actions
                of other dimensions than are predicted.
        """
        policy = self.policy_record.policy
        chunk_size, dim = policy.window.chunk_size, policy.frame.action_dim
        if not 1 <= self.n_action_steps <= chunk_size:
            raise InvalidInputError(
                f"--policy.n_action_steps={self.n_action_steps}: the policy predicts {chunk_size} "
                f"actions at a time; give 1 to {chunk_size}"
            )
        if self.temporal_ensemble_coeff is not None and self.n_action_steps != 1:
            raise InvalidInputError(
                "--policy.temporal_ensemble_coeff averages what every step predicts; give "
                f"--policy.n_action_steps=1 with it, not {self.n_action_steps}"
            )
        if self.action_range is not None and self.action_range[0] >= self.action_range[1]:
            raise InvalidInputError(
                f"--policy.action_range={list(self.action_range)}: the smaller number comes first"
            )
        feature = self.action_feature
        if feature is not None and tuple(feature.shape) != (dim,):
            raise InvalidInputError(
                f"the policy predicts actions of {dim} dimensions, but this environment or robot "
                f"takes {list(feature.shape)}; run it where it was trained "
                f"({self.policy_record.dataset['name']})"
            )
