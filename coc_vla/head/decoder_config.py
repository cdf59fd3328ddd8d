"""What an explaining decoder reads of the trunk, and what determines its shape."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from world_modality.policy.config import PolicyConfig
from world_modality.system.errors import InvalidInputError, require_at_least

TextContext = Literal["trunk", "lang"]


@dataclass(frozen=True)
class TrunkView:
    """Which of a trunk's hidden states, `dim` wide, a decoder reads: LANG, WORLD_CUR, FUT×K."""

    dim: int
    reads_lang: bool
    reads_world: bool
    num_future: int

    def __post_init__(self) -> None:
        if self.num_states == 0:
            raise InvalidInputError(
                "the explaining head has nothing to read: arm A without language has neither LANG "
                "nor WORLD_CUR nor FUT; give --use_language, or another --model_type"
            )

    @property
    def num_states(self) -> int:
        """Hidden states that the decoder attends to."""
        return self.reads_lang + self.reads_world + self.num_future

    @classmethod
    def of(cls, policy: PolicyConfig, context: TextContext) -> "TrunkView":
        """Choose what is read of a policy's trunk.

        In the context `trunk` it is LANG, WORLD_CUR and FUT, whichever the arm has; in `lang` it is
        LANG alone, which makes the instruction-only control.

        Raises:
            InvalidInputError: the control of a policy without language, or nothing to read.
        """
        sees_world = context == "trunk"
        if not sees_world and not policy.reads_language:
            raise InvalidInputError(
                "--text_context lang reads the instruction, which this policy does not: give "
                "--use_language"
            )
        return cls(
            dim=policy.trunk.d_model,
            reads_lang=policy.reads_language,
            reads_world=sees_world and policy.reads_world,
            num_future=policy.window.future_offset if sees_world and policy.predicts_world else 0,
        )


@dataclass(frozen=True)
class DecoderConfig:
    """All that determines the decoder's shape; a checkpoint stores it whole.

    Attributes:
        view: what it reads of the trunk.
        vocabulary_size: of the tokenizer, marks included.
        marks: the tokens from which positions are counted: those between halves and steps.
        max_tokens: longest sequence, its begin and end marks included.
        dropout: inside it, but for the attention weights.
        word_dropout: share of the tokens before the next one that it does not see in training.
    """

    view: TrunkView
    vocabulary_size: int
    marks: tuple[int, ...]
    max_tokens: int
    d_model: int
    n_layers: int
    n_heads: int
    dropout: float
    word_dropout: float

    def __post_init__(self) -> None:
        require_at_least("text_layers", self.n_layers, 1)
        if self.n_heads < 1 or self.d_model % self.n_heads:
            raise InvalidInputError(
                f"--text_width {self.d_model} must be a multiple of --text_heads {self.n_heads}"
            )
        for name in ("dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInputError(
                    f"--text_{name} must lie in [0, 1), not {getattr(self, name)}"
                )


def decoder_config_from_dict(values: dict[str, Any]) -> DecoderConfig:
    """Rebuild the config that a checkpoint stores.

    Raises:
        InvalidInputError: a field is missing or unknown.
    """
    expected = {field.name for field in dataclasses.fields(DecoderConfig)}
    if set(values) != expected:
        raise InvalidInputError(
            f"the checkpoint's decoder has fields {sorted(set(values) ^ expected)} that this "
            "version lacks or adds; use the version that wrote it, or train again"
        )
    return DecoderConfig(
        **{**values, "view": TrunkView(**values["view"]), "marks": tuple(values["marks"])}
    )
