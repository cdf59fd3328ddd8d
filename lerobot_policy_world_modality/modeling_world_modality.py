"""The policy in LeRobot's loop: observations in, actions out, one call a step."""

import logging
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lerobot_policy_world_modality.configuration_world_modality import (
    NO_TRAINING,
    WorldModalityConfig,
)
from lerobot_policy_world_modality.instructions import InstructionTable
from lerobot_policy_world_modality.observed_frames import FrameReader
from world_modality.acting.acting_policy import ActingPolicy
from world_modality.acting.action_chunks import ChunkExecution
from world_modality.acting.episode_memory import EpisodeMemory, is_observed
from world_modality.acting.frame_encoder import FrameEncoder
from world_modality.acting.world_input import EpisodeWorldInput, WorldInput
from world_modality.encode.observation_encoder import load_observation_encoder
from world_modality.export.policy_record import (
    INSTRUCTION_ARRAY,
    ArrayRecord,
    PolicyRecord,
    require_own_shape,
)
from world_modality.policy.network import WorldPolicy
from world_modality.system.errors import InvalidInputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _UnnamedEpisode:
    """An episode of LeRobot's loop, which says of it only what is to be done."""

    task: str = ""
    instruction: str = ""
    episode: int = 0
    seed: int = 0


class _Arrays(nn.Module):
    """The arrays of codebook, fitted encoder and instructions, beside the weights."""

    def __init__(self, record: PolicyRecord) -> None:
        super().__init__()
        for name, array in record.arrays.items():
            self.register_buffer(name, torch.zeros(array.shape, dtype=array.torch_dtype))

    def as_numpy(self) -> dict[str, np.ndarray]:
        """Return them by name."""
        return {name: one.cpu().numpy() for name, one in self.named_buffers()}


class WorldModalityPolicy(PreTrainedPolicy):
    """An exported policy of world-modality-vla.

    The frozen vision encoder is no part of the saved weights: it is rebuilt from its name, revision
    and hash, or from its arrays where it was fitted to the dataset.

    Args:
        config: of an exported policy.
        dataset_stats, dataset_meta: LeRobot gives them to every policy; not used here.
    """

    config_class = WorldModalityConfig
    name = "world_modality"

    def __init__(
        self, config: WorldModalityConfig, dataset_stats: Any = None, dataset_meta: Any = None
    ) -> None:
        super().__init__(config)
        self.config = config
        config.validate_features()
        record = config.policy_record
        self.model = WorldPolicy(record.policy)
        self.arrays = _Arrays(record)
        self._reader = FrameReader(record)
        self._acting: ActingPolicy | None = None
        self._instructions: InstructionTable | None = None
        self._has_warned = False
        self.reset()

    @classmethod
    def _load_as_safetensor(
        cls, model: "WorldModalityPolicy", model_file: str, map_location: str, strict: bool
    ) -> "WorldModalityPolicy":
        """Load the weights, strictly whatever `strict` says, and what they need beside them."""
        model.load_exported(Path(model_file))
        return model

    def load_exported(self, path: Path) -> None:
        """Load `model.safetensors`, and rebuild the vision encoder.

        Raises:
            InvalidInputError: a tensor is missing, unknown, of another shape or number format, or
                not the one of the record; or the vision encoder is not that of the record.
        """
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InvalidInputError(
                f"{path} cannot be read as safetensors ({error}); export or download it again"
            ) from error
        own = self.state_dict()
        faults = [f"{name} is missing" for name in own if name not in tensors]
        faults += [f"{name} is unknown" for name in tensors if name not in own]
        for name in own.keys() & tensors.keys():
            expected, found = own[name], tensors[name]
            if (expected.shape, expected.dtype) != (found.shape, found.dtype):
                faults.append(
                    f"{name} is {found.dtype} {list(found.shape)}, expected {expected.dtype} "
                    f"{list(expected.shape)}"
                )
        if faults:
            more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise InvalidInputError(
                f"{path} does not belong to its config.json: {'; '.join(sorted(faults)[:3])}"
                f"{more}; export or download both again"
            )
        self.load_state_dict(tensors, strict=True)
        arrays = self.arrays.as_numpy()
        for name, record in self.config.policy_record.arrays.items():
            if ArrayRecord.of(arrays[name]) != record:
                raise InvalidInputError(
                    f"the array {name} in {path} is not the one that its config.json describes "
                    "(the SHA-256 differs); export or download both again"
                )
        self._prepare(arrays)

    def _prepare(self, arrays: dict[str, np.ndarray]) -> None:
        config, record = self.config, self.config.policy_record
        device = torch.device(config.device or "cpu")
        encoder = load_observation_encoder(
            record.manifest,
            arrays,
            device,
            model_name=config.vision_model_name,
            trust_remote_code=config.trust_remote_code,
        )
        require_own_shape(encoder.shape, record.policy.frame.observation)
        reads_world = record.policy.reads_world
        self._acting = ActingPolicy(
            config=record.policy,
            encoder=FrameEncoder(encoder, record.load_tokeniser(arrays)),
            world=(
                WorldInput.without_draws(record.token_control, record.policy)
                if reads_world
                else None
            ),
            execution=ChunkExecution(
                record.policy.window.chunk_size,
                config.n_action_steps,
                config.temporal_ensemble_coeff,
                config.action_range,
            ),
            device=device,
            predict_chunks=self._predict_chunks,
        )
        if record.text is not None:
            self._instructions = InstructionTable(
                record.instructions,
                arrays[INSTRUCTION_ARRAY],
                record.text,
                config.text_model_name,
                device,
            )

    def _predict_chunks(self, *context: Tensor) -> Float[Tensor, "B H A"]:
        device = self.model.action_norm.mean.device
        output = self.model(*(one.to(device) for one in context))
        chunk: Tensor = self.model.action_norm.inverse(output.actions.float())
        return chunk

    def get_optim_params(self) -> dict[str, Any]:
        """Refuse training."""
        raise NotImplementedError(NO_TRAINING)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """Refuse training."""
        raise NotImplementedError(NO_TRAINING)

    def reset(self) -> None:
        """Forget the episode: its frames, and the actions that were not executed yet."""
        self._memories: list[EpisodeMemory] = []
        self._step = 0
        self._actions: deque[np.ndarray] = deque()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Float[Tensor, "B A"]:
        """Return the action of this step, in the dataset's units; called at every step.

        Raises:
            UserError: the observation is not what the policy reads.
        """
        acting = self._loaded()
        # Other frames are read by no prediction, and need not be encoded.
        if is_observed(-len(self._actions), acting):
            self._observe(acting, batch)
        if not self._actions:
            answers = acting.act(self._memories, self._asked(acting, batch))
            self._actions.extend(np.stack(answers, axis=1))
        self._step += 1
        return self._on_device(self._actions.popleft())

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Float[Tensor, "B H A"]:
        """Return the action chunk of this observation, in the dataset's units.

        A policy that reads earlier frames takes the observations that it is called with for frames
        in a row.

        Raises:
            UserError: the observation is not what the policy reads.
        """
        acting = self._loaded()
        past_frames = acting.config.window.past_frames
        if past_frames > 0 and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "this policy reads what was seen up to %d frames ago: predict_action_chunk has to "
                "be called at every frame, which a policy server does not do",
                past_frames,
            )
        self._observe(acting, batch)
        chunks = acting.predict(self._memories, self._asked(acting, batch))
        self._step += 1
        for memory in self._memories:
            acting.forget(memory, self._step)
        return self._on_device(acting.execution.clipped(chunks))

    def _loaded(self) -> ActingPolicy:
        if self._acting is None:
            raise RuntimeError("the policy has no weights yet: use from_pretrained")
        return self._acting

    def _observe(self, acting: ActingPolicy, batch: dict[str, Any]) -> None:
        frame = self._reader.read(batch)
        count = len(frame.states)
        if not self._memories:
            self._memories = [EpisodeMemory(None, self._world_of_episode()) for _ in range(count)]
        if len(self._memories) != count:
            raise InvalidInputError(
                f"the episode began with {len(self._memories)} observations at a time, and now "
                f"has {count}; call reset() before"
            )
        acting.observe(
            [(one, self._step) for one in self._memories],
            [list(images) for images in frame.views],
            list(frame.states),
        )

    def _world_of_episode(self) -> EpisodeWorldInput | None:
        world = self._loaded().world
        return None if world is None else world.begin(_UnnamedEpisode())

    def _asked(self, acting: ActingPolicy, batch: dict[str, Any]) -> list[int]:
        """Tell each episode its instruction; return the step of each."""
        count, seen = len(self._memories), self._memories[0]
        needed = {max(self._step - lag, 0) for lag in acting.observed_lags}
        if not needed <= seen.frames.keys() | seen.tokens.keys():
            raise InvalidInputError(
                "the policy reads earlier frames, which select_action did not keep for "
                "predict_action_chunk; call reset() between the two"
            )
        if self._instructions is not None:
            rows = self._instructions.rows(batch.get("task"), count)
            for memory, row in zip(self._memories, rows, strict=True):
                memory.instruction = row
        return [self._step] * count

    def _on_device(self, actions: np.ndarray) -> Tensor:
        return torch.from_numpy(actions).to(self.model.action_norm.mean.device)
