"""The policy of a checkpoint, acting in closed loop."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.dark_policy import DarkPolicy
from benchmarks.rollouts.loop import Query
from benchmarks.rollouts.suite_fit import (
    PolicyInputs,
    joined_vectors,
    require_actions,
    require_rendering,
    true_state_key,
)
from benchmarks.suite import EpisodeSpec, Suite
from world_modality.acting.episode_memory import EpisodeMemory
from world_modality.arms import CLOSED_LOOP_READS, CONTROLS, TRUE_STATE
from world_modality.cache.contract import sha256_of_file
from world_modality.policy.imagined_tokens import ImaginedTokens
from world_modality.system.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

    from world_modality.acting.acting_policy import ActingPolicy
    from world_modality.encode.text_encoder import TextEncoder
    from world_modality.policy.checkpoint import Checkpoint
    from world_modality.tokens.privileged_tokens import PrivilegedCodebook


@dataclass(frozen=True)
class CheckpointPolicy:
    """Encoder, codebook, statistics, instruction and weights of one checkpoint.

    Actions do not depend on the other episodes of the same call, to the last bit: encoder and
    policy always compute groups of one size.

    Attributes:
        path: the checkpoint's file.
        sha256: of that file.
        checkpoint: what it holds.
        inputs: what of an observation is seen.
        notes: what to say beside its results.
        acting: what turns observations into actions.
        has_outage: whether its cameras are dark for a while.
    """

    path: Path
    sha256: str
    checkpoint: "Checkpoint" = field(repr=False)
    inputs: PolicyInputs
    notes: tuple[str, ...]
    acting: "ActingPolicy" = field(repr=False)
    has_outage: bool
    _text_encoder: "TextEncoder | None" = field(repr=False)
    _true_state: "_TrueState | None" = field(default=None, repr=False)
    _instructions: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path, suite: Suite, config: RolloutConfig) -> "CheckpointPolicy":
        """Load a checkpoint and all that it needs to act in a suite.

        Raises:
            UserError: the file is missing or damaged; vision or text model are not those of the
                checkpoint; codebook, camera, state, action or rendering do not fit; or a flag asks
                for what this policy cannot do.
        """
        from world_modality.acting.acting_policy import ActingPolicy
        from world_modality.acting.frame_encoder import FrameEncoder
        from world_modality.acting.traced_actions import TracedActions
        from world_modality.acting.world_input import WorldInput
        from world_modality.policy.checkpoint import load_checkpoint
        from world_modality.system.device import resolve_device

        device = resolve_device(config.device)
        checkpoint = load_checkpoint(path, device)
        if not checkpoint.cache_fingerprint:
            raise InvalidInputError(
                f"{path} has no fingerprint of the cache it was trained on, so that its encoder "
                "and codebook cannot be checked; train again"
            )
        require_actions(checkpoint, suite)
        inputs = PolicyInputs.of(checkpoint, suite, config)
        notes = require_rendering(checkpoint, suite)
        is_corrupted = str(config.corruption) != "none"
        reads_world = checkpoint.policy_config.reads_world
        if is_corrupted and not reads_world:
            notes.append(
                f"--corrupt_world {config.corruption} changes nothing for arm "
                f"{checkpoint.policy_config.model_type}, which reads no world token"
            )
        control = checkpoint.train_config.token_control
        if is_corrupted and control != "none" and not CONTROLS[control].own_token:
            notes.append(
                f"--corrupt_world {config.corruption} changes nothing for the control arm "
                f"{control}, which does not read its own token"
            )
        world = WorldInput.of(config.corruption, checkpoint) if reads_world else None
        if world is not None and world.note:
            notes.append(world.note)
        true_state = _true_state(checkpoint, suite)
        group_size = config.group_size(device.type)
        execution = config.execution(checkpoint.policy_config.window.chunk_size)
        masks_dark = False
        if config.outage is not None:
            masks_dark = checkpoint.policy_config.trunk.observation_dropout > 0
            dark = DarkPolicy.of(checkpoint, config, execution.n_action_steps)
            notes += dark.notes
            if world is not None:
                world = dataclasses.replace(world, in_the_dark=dark.world_input)
        encoder = FrameEncoder.of(
            checkpoint,
            device,
            group_size=group_size,
            vision_model_name=config.vision_model_name,
            trust_remote_code=config.trust_remote_code,
        )
        acting = ActingPolicy(
            config=checkpoint.policy_config,
            encoder=encoder,
            world=world,
            execution=execution,
            device=device,
            predict_chunks=TracedActions(
                checkpoint.build_policy(device),
                group_size,
                masks_dark=masks_dark,
                with_tokens=world is not None and world.goes_on_with_predictions,
            ),
            true_state=None if true_state is None else true_state.codebook,
            masks_dark=masks_dark,
        )
        policy = cls(
            path=path,
            sha256=sha256_of_file(path),
            checkpoint=checkpoint,
            inputs=inputs,
            notes=tuple(notes),
            acting=acting,
            has_outage=config.outage is not None,
            _true_state=true_state,
            _text_encoder=_load_text_encoder(checkpoint, config, device),
        )
        for note in policy.notes:
            print(f"note: {policy.label}: {note}")
        return policy

    @property
    def model_type(self) -> str:
        """The arm."""
        return self.checkpoint.policy_config.model_type

    @property
    def label(self) -> str:
        """Its name in reports: folder and file, such as `logs_c/model_C_epoch9`."""
        return f"{self.path.absolute().parent.name}/{self.path.stem}"

    @property
    def n_action_steps(self) -> int:
        """Actions that a query is answered with."""
        return self.acting.n_action_steps

    @property
    def observed_lags(self) -> tuple[int, ...]:
        """Those of the context's frames, and of the frames whose world tokens are needed."""
        return self.acting.observed_lags

    def begin(self, episode: EpisodeSpec) -> EpisodeMemory:
        """Return the memory of a new episode.

        Raises:
            UserError: its instruction is blank, or its task has no training episode to draw the
                world token from.
        """
        world = self.acting.world
        return EpisodeMemory(
            instruction=self._instruction(episode.instruction),
            world=None if world is None else world.begin(episode),
            dark_frames=episode.dark_frames,
            imagined=ImaginedTokens() if world is not None and world.is_imagined else None,
        )

    def act(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Return for each query float32 actions [n, A] in [-1, 1].

        Raises:
            InvalidInputError: the state's dimension is not the policy's.
        """
        self._observe(queries)
        return self.acting.act([q.memory for q in queries], [q.step for q in queries])

    def record(self) -> dict[str, Any]:
        """Return what decides its actions, as JSON."""
        manifest = self.checkpoint.manifest
        acting, text, image_keys = self.acting, self._text_encoder, self.inputs.image_keys
        control = self.checkpoint.train_config.token_control
        return {
            **self._outage_record(),
            **({} if control == "none" else {"token_control": control}),
            "model_type": self.model_type,
            "cache_fingerprint": self.checkpoint.cache_fingerprint,
            "encoder": acting.encoder.encoder.encoder.name,
            "encoder_weights_sha256": manifest["encoder"]["weights_sha256"],
            "text_model": None if text is None else text.name,
            "image_key": image_keys[0],
            **({"image_keys": list(image_keys)} if len(image_keys) > 1 else {}),
            "state_key": self.inputs.state_key,
            "n_action_steps": self.n_action_steps,
            "temporal_ensemble_coeff": acting.execution.ensemble_coeff,
            "corrupt_world": "none" if acting.world is None else str(acting.world.corruption),
            "policy_batch_size": acting.encoder.group_size,
            "device": acting.device.type,
        }

    def _outage_record(self) -> dict[str, Any]:
        """Return what is given of dark frames; nothing where there is no outage."""
        if not self.has_outage:
            return {}
        world = self.acting.world
        dark = {"dark_frames": "masked" if self.acting.masks_dark else "black"}
        if world is not None and world.in_the_dark is not None:
            dark["world_input"] = world.in_the_dark
        return dark

    def _instruction(self, text: str) -> np.ndarray | None:
        if self._text_encoder is None:
            return None
        if text not in self._instructions:
            encoded = self._text_encoder.encode([text])[0]
            self._instructions[text] = encoded.astype(np.float16)
        return self._instructions[text]

    def _observe(self, queries: Sequence[Query]) -> None:
        """Encode the newly observed frames of all queries into their memories."""
        seen = [(query, number) for query in queries for number in sorted(query.frames)]
        observed = [query.frames[number] for query, number in seen]
        self.acting.observe(
            [(query.memory, number) for query, number in seen],
            [[one[key] for one in observed] for key in self.inputs.image_keys],
            [self.inputs.state(one) for one in observed],
            None
            if self._true_state is None
            else [joined_vectors(one, self._true_state.key) for one in observed],
        )


@dataclass(frozen=True)
class _TrueState:
    """Where the simulator's true state is among what is observed, and the codebook of it."""

    key: str
    codebook: "PrivilegedCodebook"


def _true_state(checkpoint: "Checkpoint", suite: Suite) -> _TrueState | None:
    """Return what a policy needs that reads the true state; None for all others.

    Raises:
        InvalidInputError: the suite does not tell it, or the checkpoint lacks its codebook.
    """
    if CLOSED_LOOP_READS[checkpoint.train_config.token_control] != TRUE_STATE:
        return None
    from world_modality.tokens.privileged_tokens import PrivilegedCodebook

    key = true_state_key(checkpoint, suite)
    arrays = {name: one.cpu().numpy() for name, one in checkpoint.cache_arrays.items()}
    return _TrueState(key, PrivilegedCodebook.from_arrays(arrays))


def _load_text_encoder(
    checkpoint: "Checkpoint", config: RolloutConfig, device: "torch.device"
) -> "TextEncoder | None":
    """Load the text model of a policy that reads language; None for another."""
    if not checkpoint.policy_config.reads_language:
        return None
    from world_modality.encode.text_encoder import load_text_encoder

    record = checkpoint.manifest.get("text")
    if record is None:
        raise InvalidInputError(
            "the checkpoint's policy reads language, but its manifest does not say which text "
            "model embedded the instructions; train again"
        )
    return load_text_encoder(record, device, model_name=config.text_model_name)
