"""The policy of a checkpoint, acting in closed loop."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from benchmarks.rollouts.acting.action_chunks import ChunkExecution
from benchmarks.rollouts.acting.frame_encoder import FrameEncoder, filled_groups, single_thread
from benchmarks.rollouts.acting.suite_fit import PolicyInputs, require_actions, require_rendering
from benchmarks.rollouts.acting.world_input import EncodedFrame, EpisodeMemory, Tokens, WorldInput
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.loop import Query
from benchmarks.suite import EpisodeSpec, Observation, Suite
from world_modality.arms import CONTROLS
from world_modality.cache.contract import sha256_of_file
from world_modality.system.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

    from benchmarks.rollouts.acting.traced_actions import TracedActions
    from world_modality.encode.text_encoder import TextEncoder
    from world_modality.policy.checkpoint import Checkpoint


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
        execution: how much of a predicted chunk is executed.
        world: which world tokens are read; None for an arm that reads none.
        notes: what to say beside its results.
    """

    path: Path
    sha256: str
    checkpoint: "Checkpoint" = field(repr=False)
    inputs: PolicyInputs
    execution: ChunkExecution
    world: WorldInput | None
    notes: tuple[str, ...]
    _encoder: FrameEncoder = field(repr=False)
    _actions: "TracedActions" = field(repr=False)
    _device: "torch.device" = field(repr=False)
    _text_encoder: "TextEncoder | None" = field(repr=False)
    _instructions: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path, suite: Suite, config: RolloutConfig) -> "CheckpointPolicy":
        """Load a checkpoint and all that it needs to act in a suite.

        Raises:
            UserError: the file is missing or damaged; vision or text model are not those of the
                checkpoint; codebook, camera, state, action or rendering do not fit; or a flag asks
                for what this policy cannot do.
        """
        from benchmarks.rollouts.acting.traced_actions import TracedActions
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
        encoder = FrameEncoder.of(checkpoint, config, device)
        policy = cls(
            path=path,
            sha256=sha256_of_file(path),
            checkpoint=checkpoint,
            inputs=inputs,
            execution=ChunkExecution.of(config, checkpoint.policy_config.window.chunk_size),
            world=world,
            notes=tuple(notes),
            _encoder=encoder,
            _actions=TracedActions(checkpoint.build_policy(device), encoder.group_size),
            _device=device,
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
        return self.execution.n_action_steps

    @property
    def observed_lags(self) -> tuple[int, ...]:
        """Those of the context's frames, and of the frames whose world tokens are needed."""
        return tuple(sorted({*self._context_lags, *self._token_lags}))

    @property
    def _context_lags(self) -> tuple[int, ...]:
        return self.checkpoint.policy_config.window.context_lags

    @property
    def _token_lags(self) -> frozenset[int]:
        return frozenset() if self.world is None else self.world.observed_lags

    def begin(self, episode: EpisodeSpec) -> EpisodeMemory:
        """Return the memory of a new episode.

        Raises:
            UserError: its instruction is blank, or its task has no training episode to draw the
                world token from.
        """
        return EpisodeMemory(
            instruction=self._instruction(episode.instruction),
            world=None if self.world is None else self.world.begin(episode),
        )

    def act(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Return for each query float32 actions [n, A] in [-1, 1].

        Raises:
            InvalidInputError: the state's dimension is not the policy's.
        """
        self._observe(queries)
        chunks = self._predict(queries)
        answers = []
        for query, chunk in zip(queries, chunks, strict=True):
            memory: EpisodeMemory = query.memory
            memory.chunks[query.step] = chunk
            answers.append(self.execution.actions(memory.chunks, query.step))
            memory.chunks = self.execution.kept(memory.chunks, query.step)
            next_step = query.step + self.n_action_steps
            memory.forget_before(next_step, self._context_lags, self._token_lags)
        return answers

    def record(self) -> dict[str, Any]:
        """Return what decides its actions, as JSON."""
        manifest = self.checkpoint.manifest
        world, text, image_keys = self.world, self._text_encoder, self.inputs.image_keys
        control = self.checkpoint.train_config.token_control
        return {
            **({} if control == "none" else {"token_control": control}),
            "model_type": self.model_type,
            "cache_fingerprint": self.checkpoint.cache_fingerprint,
            "encoder": self._encoder.encoder.encoder.name,
            "encoder_weights_sha256": manifest["encoder"]["weights_sha256"],
            "text_model": None if text is None else text.name,
            "image_key": image_keys[0],
            **({"image_keys": list(image_keys)} if len(image_keys) > 1 else {}),
            "state_key": self.inputs.state_key,
            "n_action_steps": self.n_action_steps,
            "temporal_ensemble_coeff": self.execution.ensemble_coeff,
            "corrupt_world": "none" if world is None else str(world.corruption),
            "policy_batch_size": self._encoder.group_size,
            "device": self._device.type,
        }

    def _instruction(self, text: str) -> np.ndarray | None:
        if self._text_encoder is None:
            return None
        if text not in self._instructions:
            encoded = self._text_encoder.encode([text])[0]
            self._instructions[text] = encoded.astype(np.float16)
        return self._instructions[text]

    def _observe(self, queries: Sequence[Query]) -> None:
        """Encode the newly observed frames of all queries into their memories."""
        seen: list[tuple[EpisodeMemory, int, Observation]] = [
            (query.memory, number, query.frames[number])
            for query in queries
            for number in sorted(query.frames)
        ]
        states = [self.inputs.state(observation) for _, _, observation in seen]
        views = [[observed[key] for _, _, observed in seen] for key in self.inputs.image_keys]
        embeddings = self._encoder.embed(views)
        for (memory, number, _), embedding, state in zip(
            seen, self._encoder.read(embeddings), states, strict=True
        ):
            memory.frames[number] = EncodedFrame(embedding, state)
        if self.world is not None:
            found = self._encoder.tokens(embeddings)
            tokens: list[Tokens] = found.tolist() if found.ndim == 1 else list(found)
            for (memory, number, _), token in zip(seen, tokens, strict=True):
                memory.tokens[number] = token

    def _predict(self, queries: Sequence[Query]) -> Float32[np.ndarray, "n H A"]:
        """Predict the action chunk of each query, in the simulator's units."""
        import torch

        config = self.checkpoint.policy_config
        contexts = [q.memory.context(q.step, self._context_lags) for q in queries]
        inputs = [
            np.stack([[frame.embedding for frame in context] for context in contexts]),
            np.stack([[frame.state for frame in context] for context in contexts]),
            np.zeros((len(queries), *config.world_axis), dtype=np.int64)
            if self.world is None
            else np.array([q.memory.world_tokens(q.step) for q in queries], dtype=np.int64),
        ]
        if config.reads_language:
            inputs.append(np.stack([q.memory.instruction for q in queries]))
        chunks = np.empty(
            (len(queries), config.window.chunk_size, config.frame.action_dim), dtype=np.float32
        )
        with single_thread():
            for chosen in filled_groups(len(queries), self._encoder.group_size):
                tensors = [torch.from_numpy(array[chosen]).to(self._device) for array in inputs]
                chunks[chosen] = self._actions(*tensors).cpu().numpy()
        return chunks


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
