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

from world_modality.arms import CLOSED_LOOP_READS, ONE_CODE, OWN_TOKEN, ControlName
from world_modality.cache.frame_shapes import ObservationShape
from world_modality.policy.config import PolicyConfig, flags_of, stored_config
from world_modality.precompute.dataset_columns import joined_columns
from world_modality.system.errors import InvalidInputError, missing_key
from world_modality.tokens.world_slots import FIRST_SLOTS, WorldSlots
from world_modality.tokens.world_tokens import WorldTokeniser, load_tokeniser

FORMAT = "world-modality-policy/1"
POLICY_TYPE = "world_modality"
INSTRUCTION_ARRAY = "instruction_embeddings"
# How `model.safetensors` names the network's weights, and the arrays of encoder and codebook.
MODEL_PREFIX, ARRAY_PREFIX = "model.", "arrays."
# LeRobot's processors let pass what begins so, and nothing else.
OBSERVATION_PREFIX = "observation."
WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"
# The entries of a manifest's section that says what more than one vector is kept of a frame.
_OBSERVATION_ENTRIES = {"image_keys", "grid_size", "num_vectors", "embedding_dim", "components"}


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
        image_key: the first camera, as the dataset calls it.
        state_key: the robot's state, as the dataset calls it; several columns are joined by +.
        encoder: the manifest's record of the vision encoder; its weights are not part of the
            export, unless it was fitted to the dataset.
        codebook: the manifest's record of the codebook.
        text: the manifest's record of the text model; None for a policy without language.
        instructions: the training instructions, in the order of the rows of their embeddings.
        arrays: of the codebook, of a fitted encoder, of components of its vectors, and the
            instructions' embeddings.
        dataset: what it was trained on.
        checkpoint: which checkpoint it is.
        observation: the manifest's record of a frame's views, cells and components; None, and no
            entry of the file, where the encoder's own vector of one camera is read.
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
    observation: dict[str, Any] | None = None

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
        own = {name: value for name, value in content.items() if name != "format"}
        entries = {"observation": None, **own}
        _require_entries(entries, _names(cls), where)
        if entries["observation"] is not None:
            _require_entries(entries["observation"], _OBSERVATION_ENTRIES, f"{where}, observation,")
        if entries["token_control"] not in CLOSED_LOOP_READS:
            known = CLOSED_LOOP_READS
            raise missing_key("control", str(entries["token_control"]), known, "this version")
        for name, array in entries["arrays"].items():
            _require_entries(array, _names(ArrayRecord), f"{where}, arrays.{name},")
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
        if self.observation is None:
            own.pop("observation")
        content = {"format": FORMAT, **own, "policy": flags_of(self.policy), "arrays": arrays}
        plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
        return plain

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The cameras in the order of the views, as the dataset calls them."""
        if self.observation is None:
            return (self.image_key,)
        return tuple(self.observation["image_keys"])

    @property
    def observed_images(self) -> tuple[str, ...]:
        """The cameras in the order of the views, as LeRobot calls them."""
        return tuple(lerobot_key(key) for key in self.image_keys)

    @property
    def observed_states(self) -> tuple[str, ...]:
        """The parts of the robot's state, as LeRobot calls them."""
        return tuple(lerobot_key(column) for column in joined_columns(self.state_key))

    @property
    def manifest(self) -> dict[str, Any]:
        """The sections of the manifest that encoder and codebook are rebuilt from."""
        kept = {} if self.observation is None else {"observation": self.observation}
        return {"encoder": self.encoder, "codebook": self.codebook, **kept}

    @property
    def world_slots(self) -> WorldSlots:
        """Which vectors of a frame have world tokens."""
        slots: WorldSlots = self.codebook.get("slots", FIRST_SLOTS)
        return slots

    @property
    def codebook_dim(self) -> int:
        """The dimension of the vectors that are quantised."""
        if self.observation is None or self.world_slots == FIRST_SLOTS:
            return int(self.encoder["embedding_dim"])
        return int(self.observation["embedding_dim"])

    def load_tokeniser(self, arrays: Mapping[str, np.ndarray]) -> WorldTokeniser:
        """Rebuild what gives frames their world tokens.

        Raises:
            InvalidInputError: as `load_tokeniser`, or what the codebook gives or what is kept of a
                frame is not what the network was built for.
        """
        tokeniser = load_tokeniser(self.manifest, arrays)
        frame = self.policy.frame
        sizes = {
            "codes": (tokeniser.num_codes, frame.world.num_world_tokens),
            "tokens a frame": (tokeniser.num_slots, frame.world.num_world_slots),
            "dimensions": (tokeniser.quantiser.embedding_dim, self.codebook_dim),
        }
        for what, (found, expected) in sizes.items():
            if found != expected:
                raise InvalidInputError(
                    f"the codebook has {found} {what}, but encoder and policy were built for "
                    f"{expected}; train again on one cache, and export that checkpoint"
                )
        require_own_shape(tokeniser.shape, frame.observation)
        return tokeniser


def require_own_shape(found: ObservationShape, expected: ObservationShape) -> None:
    """Refuse frames of other vectors than the network was built for.

    Raises:
        InvalidInputError: says both.
    """
    if found != expected:
        own, built = (
            f"{one.num_views} views of {one.grid_size}x{one.grid_size} vectors of dimension "
            f"{one.embedding_dim}"
            for one in (found, expected)
        )
        raise InvalidInputError(
            f"a frame has {own}, but the policy was built for {built}; train again on one cache, "
            "and export that checkpoint"
        )


def _names(kind: type[Any]) -> set[str]:
    return {one.name for one in fields(kind)}


def _require_entries(content: Mapping[str, Any], expected: set[str], where: str) -> None:
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
