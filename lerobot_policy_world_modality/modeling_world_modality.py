"""The policy in LeRobot's loop: observations in, actions out, one call a step."""

import logging
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lerobot.policies.act.modeling_act import ACTTemporalEnsembler
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lerobot_policy_world_modality.configuration_world_modality import (
    NO_TRAINING,
    WorldModalityConfig,
)
from lerobot_policy_world_modality.instructions import InstructionTable
from lerobot_policy_world_modality.observed_frames import FrameReader, ObservedFrame
from world_modality.export.policy_record import INSTRUCTION_ARRAY, ArrayRecord, PolicyRecord
from world_modality.policy.network import WorldPolicy
from world_modality.system.errors import InvalidInputError

logger = logging.getLogger(__name__)


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
        self._reader: FrameReader | None = None
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
        self._reader = FrameReader.of(config, arrays, device)
        if record.text is not None:
            self._instructions = InstructionTable(
                record.instructions,
                arrays[INSTRUCTION_ARRAY],
                record.text,
                config.text_model_name,
                device,
            )

    def get_optim_params(self) -> dict[str, Any]:
        """Refuse training."""
        raise NotImplementedError(NO_TRAINING)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """Refuse training."""
        raise NotImplementedError(NO_TRAINING)

    def reset(self) -> None:
        """Forget the episode: its frames, and the actions that were not executed yet."""
        self._frames: deque[ObservedFrame] = deque(
            maxlen=self.config.policy_record.policy.window.context_frames
        )
        self._actions: deque[Tensor] = deque()
        coeff, window = self.config.temporal_ensemble_coeff, self.config.policy_record.policy.window
        self._ensembler = None if coeff is None else ACTTemporalEnsembler(coeff, window.chunk_size)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Float[Tensor, "B A"]:
        """Return the action of this step, in the dataset's units; called at every step.

        Raises:
            UserError: the observation is not what the policy reads.
        """
        # Other frames are the context of no prediction, and need not be encoded.
        if len(self._actions) < self._context_frames:
            self._observe(batch)
        if not self._actions:
            chunk = self._predict(batch)
            if self._ensembler is None:
                self._actions.extend(chunk.transpose(0, 1)[: self.config.n_action_steps])
            else:
                self._actions.append(self._ensembler.update(chunk))
        return self._clipped(self._actions.popleft())

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Float[Tensor, "B H A"]:
        """Return the action chunk of this observation, in the dataset's units.

        A policy of several frames takes the observations that it is called with for frames in a
        row.

        Raises:
            UserError: the observation is not what the policy reads.
        """
        if self._context_frames > 1 and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "this policy reads %d frames in a row: predict_action_chunk has to be called at "
                "every frame, which a policy server does not do",
                self._context_frames,
            )
        self._observe(batch)
        return self._clipped(self._predict(batch))

    @property
    def _context_frames(self) -> int:
        return int(self.config.policy_record.policy.window.context_frames)

    def _observe(self, batch: dict[str, Any]) -> None:
        if self._reader is None:
            raise RuntimeError("the policy has no weights yet: use from_pretrained")
        frame = self._reader.read(batch)
        if self._frames and len(self._frames[-1].tokens) != len(frame.tokens):
            raise InvalidInputError(
                f"the episode began with {len(self._frames[-1].tokens)} observations at a time, "
                f"and now has {len(frame.tokens)}; call reset() before"
            )
        # Before the episode's start its first frame is repeated, as in training.
        missing = self._context_frames if not self._frames else 1
        self._frames.extend([frame] * missing)

    def _predict(self, batch: dict[str, Any]) -> Float[Tensor, "B H A"]:
        """Predict from the frames seen so far; not clipped."""
        frames = list(self._frames)
        inputs = [
            np.stack([frame.embeddings for frame in frames], axis=1),
            np.stack([frame.states for frame in frames], axis=1),
            frames[-1].tokens,
        ]
        if self._instructions is not None:
            inputs.append(self._instructions.rows(batch.get("task"), len(frames[-1].tokens)))
        device = self.model.action_norm.mean.device
        output = self.model(*(torch.from_numpy(one).to(device) for one in inputs))
        chunk: Tensor = self.model.action_norm.inverse(output.actions.float())
        return chunk

    def _clipped(self, actions: Tensor) -> Tensor:
        action_range = self.config.action_range
        return actions if action_range is None else actions.clamp(*action_range)
