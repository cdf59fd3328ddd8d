"""The embeddings of instructions: those of the training are inside, others need the text model."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16

from world_modality.encode.text_encoder import TextEncoder, load_text_encoder
from world_modality.system.errors import InvalidInputError, UserError

logger = logging.getLogger(__name__)
_SHOWN = 10


class InstructionTable:
    """Embeds instructions as the cache of the training did.

    Args:
        texts: the training instructions.
        embeddings: theirs.
        record: of the text model.
        model_name: the text model's folder or hub name where it has moved since.
        device: where the text model runs if it is needed.
    """

    def __init__(
        self,
        texts: Sequence[str],
        embeddings: Float16[np.ndarray, "n L"],
        record: Mapping[str, Any],
        model_name: str | None,
        device: torch.device,
    ) -> None:
        self._texts = tuple(texts)
        self._rows = dict(zip(texts, embeddings, strict=True))
        self._record, self._model_name, self._device = record, model_name, device
        self._encoder: TextEncoder | None = None

    def rows(self, tasks: object, count: int) -> Float16[np.ndarray, "B L"]:
        """Return the embedding of each instruction.

        Args:
            tasks: LeRobot's `task`, one text or one for each of B; None where there is none.
            count: B.

        Raises:
            InvalidInputError: an instruction is missing or blank, or is not one of the training
                and the text model cannot be loaded.
        """
        texts = [tasks] * count if isinstance(tasks, str) else tasks
        if not isinstance(texts, (list, tuple)) or len(texts) != count:
            raise InvalidInputError(
                f"the policy reads language: expected a task for each of {count} observations, "
                f"found {tasks!r}; give one of {self._known()}"
            )
        return np.stack([self._row(text) for text in texts])

    def _row(self, text: object) -> np.ndarray:
        if not isinstance(text, str) or not text.strip():
            raise InvalidInputError(
                f"the policy reads language, but the task is {text!r}; give one of {self._known()}"
            )
        if text not in self._rows:
            logger.warning(
                "%r is none of the %d instructions that the policy was trained with; the text "
                "model %s embeds it",
                *(text, len(self._texts), self._model_name or self._record["name"]),
            )
            self._rows[text] = self._text_model(text).encode([text])[0].astype(np.float16)
        return self._rows[text]

    def _text_model(self, text: str) -> TextEncoder:
        if self._encoder is None:
            try:
                self._encoder = load_text_encoder(
                    self._record, self._device, model_name=self._model_name
                )
            except UserError as error:
                raise InvalidInputError(
                    f"{text!r} is none of the training instructions, and the text model that "
                    f"would embed it cannot be loaded ({error}); give one of {self._known()}, or "
                    "name the model with --policy.text_model_name"
                ) from error
        return self._encoder

    def _known(self) -> str:
        shown = ", ".join(repr(text) for text in self._texts[:_SHOWN])
        return shown if len(self._texts) <= _SHOWN else f"{shown}, … ({len(self._texts)} in all)"
