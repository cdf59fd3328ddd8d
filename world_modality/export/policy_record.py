"""What an exported policy is made of: the record in its `config.json`, its weights and its arrays.

The plugin `lerobot_policy_world_modality` reads what this module writes; both go by `PolicyRecord`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from world_modality.arms import CLOSED_LOOP_READS, DUMMY_TOKEN, ONE_CODE, OWN_TOKEN, ControlName
from world_modality.policy.config import PolicyConfig, flags_of, stored_config
from world_modality.precompute.dataset_columns import joined_columns
from world_modality.system.errors import InvalidInputError, missing_key

FORMAT = "world-modality-policy/1"
POLICY_TYPE = "world_modality"
INSTRUCTION_ARRAY = "instruction_embeddings"
# How `model.safetensors` names the network's weights, and the arrays of encoder and codebook.
MODEL_PREFIX, ARRAY_PREFIX = "model.", "arrays."
# LeRobot's processors let pass what begins so, and nothing else.
OBSERVATION_PREFIX = "observation."
WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"


def lerobot_key(column: str) -> str:
    """Return what LeRobot calls an observation that a dataset may call `image` or `state`."""
    return column if column.startswith(OBSERVATION_PREFIX) else OBSERVATION_PREFIX + column


@dataclass(frozen=True)
class ArrayRecord:
    """What one array has to be: its number format, its shape and the SHA-256 of its numbers."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @classmethod
    def of(cls, array: np.ndarray) -> "ArrayRecord":
        """Describe an array."""
        content = np.ascontiguousarray(array)
        digest = hashlib.sha256(content.tobytes()).hexdigest()
        return cls(str(content.dtype), tuple(content.shape), digest)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The number format of the tensor that holds it."""
        return torch.from_numpy(np.empty(0, dtype=self.dtype)).dtype


@dataclass(frozen=True)
class PolicyRecord:
    """All that acts beside the weights.

    Attributes:
        policy: the network's configuration.
        token_control: what the world token of a control arm is taken from; `none` for its own.
        image_key: the camera, as the dataset calls it.
        state_key: the robot's state, as the dataset calls it; several columns are joined by +.
        encoder: the manifest's record of the vision encoder; its weights are not part of the
            export, unless it was fitted to the dataset.
        codebook: the manifest's record of the codebook.
        text: the manifest's record of the text model; None for a policy without language.
        instructions: the training instructions, in the order of the rows of their embeddings.
        arrays: of the codebook, of a fitted encoder, and the instructions' embeddings.
        dataset: what it was trained on.
        checkpoint: which checkpoint it is.
    """

    policy: PolicyConfig
    token_control: ControlName
    image_key: str
    state_key: str
    encoder: dict[str, Any]
    codebook: dict[str, Any]
    text: dict[str, Any] | None
    instructions: tuple[str, ...]
    arrays: dict[str, ArrayRecord]
    dataset: dict[str, Any]
    checkpoint: dict[str, Any]

    @classmethod
    def read(cls, content: Mapping[str, Any], where: str) -> "PolicyRecord":
        """Take what `as_json` gave.

        Args:
            content: the record.
            where: its file, for messages.

        Raises:
            InvalidInputError: it is of another format, or lacks an entry or has one too many.
        """
        if content.get("format") != FORMAT:
            raise InvalidInputError(
                f"{where} has a policy of the format {content.get('format')!r}, expected "
                f"{FORMAT!r}; export the checkpoint again: python -m world_modality.export_policy "
                "--checkpoint … --out_dir …"
            )
        entries = {name: value for name, value in content.items() if name != "format"}
        _require_entries(entries, cls, where)
        if entries["token_control"] not in CLOSED_LOOP_READS:
            known = CLOSED_LOOP_READS
            raise missing_key("control", str(entries["token_control"]), known, "this version")
        for name, array in entries["arrays"].items():
            _require_entries(array, ArrayRecord, f"{where}, arrays.{name},")
        return cls(
            **{
                **entries,
                "policy": stored_config(PolicyConfig, entries["policy"]),
                "instructions": tuple(entries["instructions"]),
                "arrays": {
                    name: ArrayRecord(one["dtype"], tuple(one["shape"]), one["sha256"])
                    for name, one in entries["arrays"].items()
                },
            }
        )

    def as_json(self) -> dict[str, Any]:
        """Return what a JSON file holds of it."""
        arrays = {name: asdict(one) for name, one in self.arrays.items()}
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        content = {"format": FORMAT, **own, "policy": flags_of(self.policy), "arrays": arrays}
        plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
        return plain

    @property
    def observed_image(self) -> str:
        """The camera, as LeRobot calls it."""
        return lerobot_key(self.image_key)

    @property
    def observed_states(self) -> tuple[str, ...]:
        """The parts of the robot's state, as LeRobot calls them."""
        return tuple(lerobot_key(column) for column in joined_columns(self.state_key))

    @property
    def reads_own_token(self) -> bool:
        """Whether the world token that is read is that of the frame."""
        return self.policy.reads_world and CLOSED_LOOP_READS[self.token_control] == OWN_TOKEN

    @property
    def constant_token(self) -> int:
        """What is read instead of the frame's own token; a policy that reads none ignores it."""
        return DUMMY_TOKEN


def _require_entries(content: Mapping[str, Any], kind: type[Any], where: str) -> None:
    expected = {one.name for one in fields(kind)}
    if differing := expected ^ set(content):
        raise InvalidInputError(
            f"{where} lacks or adds {', '.join(sorted(differing))} compared with this version of "
            "world-modality-vla; install the version that exported it, or export again"
        )


def require_readable_token(token_control: ControlName) -> None:
    """Refuse a control arm whose token LeRobot's loop cannot give.

    Raises:
        InvalidInputError: its token comes from the future, or is drawn by a simulator's task.
    """
    reads = CLOSED_LOOP_READS[token_control]
    if reads in (OWN_TOKEN, ONE_CODE):
        return
    what = "a token of the future" if reads is None else f"a token that is drawn ({reads})"
    mend = (
        "evaluate it with python -m world_modality.eval_offline"
        if reads is None
        else "roll it out with python -m benchmarks.metaworld.eval_metaworld_success"
    )
    raise InvalidInputError(
        f"the control arm {token_control} reads {what}, which an exported policy does not have; "
        f"{mend}, and export the arm itself"
    )


def named_tensors(
    weights: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    """Return the tensors of `model.safetensors` by name."""
    tensors = {MODEL_PREFIX + name: one.detach().cpu() for name, one in weights.items()}
    tensors |= {ARRAY_PREFIX + name: torch.from_numpy(one) for name, one in arrays.items()}
    return {name: one.contiguous() for name, one in tensors.items()}
