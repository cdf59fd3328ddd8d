"""What a checkpoint's policy is given in an outage, and whether that fits it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.rollouts.config import RolloutConfig
from world_modality.acting.world_input import DarkInput
from world_modality.arms import CLOSED_LOOP_READS, CONTROLS, TRUE_STATE
from world_modality.policy.imagined_tokens import require_reach
from world_modality.system.errors import InvalidInputError

if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint


@dataclass(frozen=True)
class DarkPolicy:
    """A policy in an outage.

    Attributes:
        world_input: which world token is read of dark frames; None for an arm that does not read
            its own.
        notes: what to say beside its results.
    """

    world_input: DarkInput | None
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, checkpoint: "Checkpoint", flags: RolloutConfig, n_action_steps: int
    ) -> "DarkPolicy":
        """Decide it for a checkpoint.

        A policy that was trained with `observation_dropout` has the dark frames masked; another is
        given black images, which it has never seen.

        Raises:
            InvalidInputError: it is to go on with predictions that it does not make, or that do not
                reach; or it would be shown what is there.
        """
        config, control = checkpoint.policy_config, checkpoint.train_config.token_control
        asked_for, is_masked = flags.world_input, config.trunk.observation_dropout > 0
        notes = []
        if flags.outage_length < n_action_steps:
            notes.append(
                f"it looks every {n_action_steps} frames (--n_action_steps): an outage of "
                f"{flags.outage_length} may lie between two looks and hide nothing"
            )
        if not is_masked:
            notes.append(
                "trained without --observation_dropout: in the dark it is given black images, "
                "which it has never seen"
            )
        if not config.reads_world or (control != "none" and not CONTROLS[control].own_token):
            if asked_for != "own":
                notes.append(
                    f"--world_input {asked_for} changes nothing for arm {config.model_type}"
                    + ("" if control == "none" else f" with --token_control {control}")
                    + ", which does not read its own world token"
                )
            return cls(None, tuple(notes))
        if asked_for == "own":
            notes.append(
                "in the dark it reads the world token of a black image; --world_input "
                "own_prediction or hold gives it another"
            )
        if asked_for == "own_prediction":
            # The codes that read the true state are not those that are predicted.
            if not config.predicts("token") or CLOSED_LOOP_READS[control] == TRUE_STATE:
                raise InvalidInputError(
                    f"--world_input own_prediction: arm {config.model_type} does not predict the "
                    f"tokens that it reads (--world_target {' '.join(config.target.world_target)}, "
                    f"--token_control {control}); give --world_input hold, or a checkpoint of "
                    "an arm that predicts world tokens"
                )
            require_reach(config.window, n_action_steps)
        if asked_for == "true_token" and not is_masked:
            raise InvalidInputError(
                "--world_input true_token shows the policy's encoder what is there, so its "
                "observation has to be masked; train with --observation_dropout"
            )
        return cls(asked_for, tuple(notes))
