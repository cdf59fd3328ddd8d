"""An author that runs here, with the transformers library: Qwen3-VL, Qwen2.5-VL and their like.

The only module here that imports transformers.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int

from coc_vla.authors.pictures import pil_image
from coc_vla.authors.vlm import VlmAnswer, VlmRequest, VlmUnavailableError
from world_modality.system.errors import InvalidInputError
from world_modality.system.proxies import by_way_of_hub


class SeededSampling:
    """Adds to each row's scores what makes its greatest score a sample of its softmax.

    The Gumbel-max trick (Gumbel, 1954; Maddison et al., 2014, eq. 2): the argmax of
    `scores / temperature + g`, g independent Gumbel(0, 1), is distributed as
    `softmax(scores / temperature)`. The noise of a row comes from the row's own generator, on the
    CPU, so that it depends neither on the device nor on the other rows.

    transformers calls it as a logits processor, once a token.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float = 1.0) -> None:
        """Prepare a generator for each row.

        Args:
            seeds: one a row.
            temperature: above 0.
            top_p: only the smallest set of tokens whose probabilities add up to it is drawn from
                (Holtzman et al., 2020).
        """
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._top_p = top_p

    def __call__(
        self, input_ids: Int[torch.Tensor, "B L"], scores: Float[torch.Tensor, "B V"]
    ) -> Float[torch.Tensor, "B V"]:
        """Return the scores with the noise; a token that is ruled out stays so."""
        scaled = scores.float() / self._temperature
        if self._top_p < 1.0:
            scaled = self._limited(scaled)
        rows = []
        for generator in self._generators:
            # 0 excluded: its logarithm is infinite.
            uniform = torch.rand(scores.shape[1], generator=generator).clamp_min(1e-20)
            rows.append(-torch.log(-torch.log(uniform)))
        noise = torch.stack(rows).to(scaled.device)
        return scaled + noise

    def _limited(self, scaled: Float[torch.Tensor, "B V"]) -> Float[torch.Tensor, "B V"]:
        ordered, order = scaled.sort(dim=1, descending=True)
        shares = ordered.softmax(dim=1)
        # A token stays while those before it have not reached top_p.
        is_out = shares.cumsum(dim=1) - shares >= self._top_p
        return scaled.masked_fill(is_out.scatter(1, order, is_out), -torch.inf)


LocalBackend = Literal["qwen3-vl", "qwen2.5-vl", "auto"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
# What the files of a model have to say about themselves, None for anything that reads images.
MODEL_TYPES: dict[LocalBackend, tuple[str, ...] | None] = {
    "qwen3-vl": ("qwen3_vl", "qwen3_vl_moe"),
    "qwen2.5-vl": ("qwen2_5_vl",),
    "auto": None,
}
# A local folder is told apart by samples of its files: hashing 16 GB takes a minute.
SAMPLE_BYTES, NUM_SAMPLES = 65_536, 16


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated.

    Attributes:
        max_tokens: of an answer.
        temperature: 0 is greedy.
        top_p: the share of probability that sampling draws from.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class TransformersVlm:
    """A model with its processor; see `Vlm`.

    Requests are answered as one batch, padded on the left. Sampling draws each answer with its own
    seed, so that a batch changes an answer only as far as the arithmetic of a larger matrix does:
    not at all in float32 on a CPU as far as is known, now and then by a rounding in bfloat16.
    """

    model_name: str
    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    device: torch.device
    settings: GenerationSettings
    needs_images: bool = True
    needs_motion: bool = False

    def answer(self, requests: Sequence[VlmRequest]) -> list[VlmAnswer]:
        """Answer the requests; a batch that does not fit the memory is halved.

        Raises:
            VlmUnavailableError: not even one request fits.
        """
        try:
            return self._generate(requests)
        except torch.OutOfMemoryError as error:
            if len(requests) == 1:
                raise VlmUnavailableError(
                    f"{self.device} has too little memory for one episode with {self.model_name} "
                    f"({str(error)[:200]}); use a smaller model, fewer --num_keyframes, a smaller "
                    "--max_image_side, or --backend openai with a server over several GPUs"
                ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(requests) // 2
        return [*self.answer(requests[:half]), *self.answer(requests[half:])]

    def close(self) -> None:
        """Nothing to let go of before the process ends."""

    def _generate(self, requests: Sequence[VlmRequest]) -> list[VlmAnswer]:
        from transformers import LogitsProcessorList

        began = time.monotonic()
        inputs = self._inputs(requests)
        width = inputs["input_ids"].shape[1]
        samplers = LogitsProcessorList()
        if self.settings.temperature > 0:
            seeds = [request.seed for request in requests]
            samplers.append(SeededSampling(seeds, self.settings.temperature, self.settings.top_p))
        with torch.inference_mode():
            generated = self.model.generate(
                **inputs,
                max_new_tokens=self.settings.max_tokens,
                # The sampler adds its noise to the scores, so that the greatest is the sample.
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                logits_processor=samplers,
                pad_token_id=self._pad_token,
            )
        answers = [self._answer_of(row[width:].tolist()) for row in generated.cpu()]
        seconds = (time.monotonic() - began) / len(requests)
        return [
            VlmAnswer(text, num_tokens, seconds, is_cut_off=is_cut_off)
            for text, num_tokens, is_cut_off in answers
        ]

    def _inputs(self, requests: Sequence[VlmRequest]) -> Any:
        conversations = []
        for request in requests:
            images = [{"type": "image", "image": pil_image(i)} for i in request.images]
            content = [*images, {"type": "text", "text": request.prompt}]
            conversations.append([{"role": "user", "content": content}])
        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )
        return inputs.to(self.device)

    def _answer_of(self, tokens: list[int]) -> tuple[str, int, bool]:
        """Return text, number of tokens, and whether the limit ended it."""
        ends = [position for position, token in enumerate(tokens) if token in self._end_tokens]
        kept = tokens[: ends[0]] if ends else tokens
        text = self.processor.tokenizer.decode(kept, skip_special_tokens=True)
        return text, len(kept) + bool(ends), not ends

    @property
    def _end_tokens(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.processor.tokenizer.eos_token_id
        return set(ends if isinstance(ends, list) else [ends])

    @property
    def _pad_token(self) -> int:
        pad = self.processor.tokenizer.pad_token_id
        return int(min(self._end_tokens) if pad is None else pad)


def load_transformers_vlm(
    name: str,
    backend: LocalBackend,
    *,
    device: torch.device,
    settings: GenerationSettings,
    precision: Precision = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TransformersVlm:
    """Load a model that reads images and writes text, by hub name or local folder.

    Raises:
        InvalidInputError: not found, no hub reachable, of another kind than the backend, or
            without vision.
        VlmUnavailableError: it does not fit the device's memory.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        _check_type(name, config.model_type, backend)
        processor = AutoProcessor.from_pretrained(name, **options)
        _check_processor(name, processor)
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=_dtype(precision, device), **options
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        if isinstance(error, InvalidInputError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(
            f"--model_name {name}: no model that reads images could be loaded"
            f"{by_way_of_hub(name)} ({reason[:300]}); "
            "give a hub name like Qwen/Qwen3-VL-8B-Instruct, a local folder with its files, or "
            "--backend rules, which needs no model"
        ) from error
    try:
        model = model.eval().to(device)
    except torch.OutOfMemoryError as error:
        raise VlmUnavailableError(
            f"{name} does not fit the memory of {device} ({str(error)[:200]}); use a smaller model "
            "or --backend openai with a server over several GPUs"
        ) from error
    processor.tokenizer.padding_side = "left"
    return TransformersVlm(name, model, processor, device, settings)


def model_identity(name: str, revision: str | None) -> str | None:
    """Return what tells a model's files apart: the hub's commit, or samples of a local folder."""
    folder = Path(name)
    if not folder.is_dir():
        from world_modality.encode.transformers_encoder import hub_revision

        return hub_revision(name, revision) or revision
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\n".encode())
        with path.open("rb") as file:
            for sample in range(NUM_SAMPLES):
                file.seek(size * sample // NUM_SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _check_type(name: str, model_type: str, backend: LocalBackend) -> None:
    expected = MODEL_TYPES[backend]
    if expected is not None and model_type not in expected:
        raise InvalidInputError(
            f"--model_name {name} is a {model_type} model, but --backend {backend} is for "
            f"{' and '.join(expected)}; use --backend auto for another model that reads images"
        )


def _check_processor(name: str, processor: Any) -> None:
    if getattr(processor, "image_processor", None) is None:
        raise InvalidInputError(
            f"--model_name {name} has no vision: its processor is a {type(processor).__name__}, "
            "which takes no images"
        )
    tokenizer = getattr(processor, "tokenizer", None)
    templates = (processor, tokenizer)
    if all(getattr(part, "chat_template", None) is None for part in templates):
        raise InvalidInputError(
            f"--model_name {name} has no chat template; use a model that follows instructions "
            "(its name often ends in Instruct)"
        )


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
