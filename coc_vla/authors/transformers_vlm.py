"""An author that runs here, with the transformers library: Qwen3-VL, Qwen2.5-VL and their like.

The only module here that imports transformers.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int

from coc_vla.authors.backends import LOCAL_BACKENDS, AuthorFlags, Backend, Precision
from coc_vla.authors.vlm import VlmAnswer, VlmRequest, VlmUnavailableError, pil_image
from world_modality.system.device import resolve_device
from world_modality.system.errors import InvalidInputError
from world_modality.system.network import through_hub_proxy

# What the files of a model have to say about themselves; auto takes anything that reads images.
MODEL_TYPES: dict[Backend, tuple[str, ...]] = {
    "qwen3-vl": ("qwen3_vl", "qwen3_vl_moe"),
    "qwen2.5-vl": ("qwen2_5_vl",),
}
# A local folder is told apart by samples of its files: hashing 16 GB takes a minute.
SAMPLE_BYTES, NUM_SAMPLES = 65_536, 16


class SeededSampling:
    """Adds to each row's scores what makes its greatest score a sample of its softmax.

    The Gumbel-max trick (Gumbel, 1954; Maddison et al., 2014, eq. 2): the argmax of
    `scores / temperature + g`, g independent Gumbel(0, 1), is distributed as
    `softmax(scores / temperature)`. The noise of a row comes from the row's own generator, on the
    CPU, so that it depends neither on the device nor on the other rows.

    transformers calls it as a logits processor, once a token.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float = 1.0) -> None:
        """Prepare a generator for each row, from its seed; `temperature` is above 0.

        Of each row only the smallest set of tokens whose probabilities add up to `top_p` is drawn
        from (Holtzman et al., 2020).
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
            ordered, order = scaled.sort(dim=1, descending=True)
            shares = ordered.softmax(dim=1)
            # A token stays while those before it have not reached top_p.
            is_out = shares.cumsum(dim=1) - shares >= self._top_p
            scaled = scaled.masked_fill(is_out.scatter(1, order, is_out), -torch.inf)
        uniform = torch.stack(
            [torch.rand(scores.shape[1], generator=generator) for generator in self._generators]
        )
        # 0 excluded: its logarithm is infinite.
        noise = -torch.log(-torch.log(uniform.clamp_min(1e-20)))
        return scaled + noise.to(scaled.device)


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
    flags: AuthorFlags

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
        inputs, pad = self._inputs(requests), self.processor.tokenizer.pad_token_id
        width = inputs["input_ids"].shape[1]
        samplers = LogitsProcessorList()
        if self.flags.temperature > 0:
            seeds = [request.seed for request in requests]
            samplers.append(SeededSampling(seeds, self.flags.temperature, self.flags.top_p))
        with torch.inference_mode():
            generated = self.model.generate(
                **inputs,
                max_new_tokens=self.flags.max_tokens,
                # The sampler adds its noise to the scores, so that the greatest is the sample.
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                logits_processor=samplers,
                pad_token_id=min(self._end_tokens) if pad is None else pad,
            )
        rows = generated[:, width:].tolist()
        seconds = (time.monotonic() - began) / len(requests)
        return [self._answer_of(row, seconds) for row in rows]

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

    def _answer_of(self, tokens: list[int], seconds: float) -> VlmAnswer:
        ends = [position for position, token in enumerate(tokens) if token in self._end_tokens]
        kept = tokens[: ends[0]] if ends else tokens
        text = self.processor.tokenizer.decode(kept, skip_special_tokens=True)
        return VlmAnswer(text, len(kept) + bool(ends), seconds, is_cut_off=not ends)

    @property
    def _end_tokens(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.processor.tokenizer.eos_token_id
        return set(ends if isinstance(ends, list) else [ends])


def load_transformers_vlm(flags: AuthorFlags) -> TransformersVlm:
    """Load a model that reads images and writes text, by hub name or local folder.

    Raises:
        InvalidInputError: not found, no hub reachable, of another kind than the backend, or
            without vision.
        VlmUnavailableError: it does not fit the device's memory.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    assert flags.backend in LOCAL_BACKENDS
    name, device = str(flags.resolved_model), resolve_device(flags.device)
    options: dict[str, Any] = {
        "revision": flags.model_revision,
        "trust_remote_code": flags.trust_remote_code,
    }
    try:
        config = AutoConfig.from_pretrained(name, **options)
        expected = MODEL_TYPES.get(flags.backend, (config.model_type,))
        if config.model_type not in expected:
            raise InvalidInputError(
                f"--model_name {name} is a {config.model_type} model, but --backend "
                f"{flags.backend} is for {' and '.join(expected)}; use --backend auto for another "
                "model that reads images"
            )
        processor = AutoProcessor.from_pretrained(name, **options)
        _check_processor(name, processor)
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=_dtype(flags.precision, device), **options
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        if isinstance(error, InvalidInputError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(
            f"--model_name {name}: no model that reads images could be loaded"
            f"{through_hub_proxy(name)} ({reason[:300]}); "
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
    return TransformersVlm(name, model, processor, device, flags)


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


def _check_processor(name: str, processor: Any) -> None:
    if getattr(processor, "image_processor", None) is None:
        raise InvalidInputError(
            f"--model_name {name} has no vision: its processor is a {type(processor).__name__}, "
            "which takes no images"
        )
    templates = (processor, getattr(processor, "tokenizer", None))
    if all(getattr(part, "chat_template", None) is None for part in templates):
        raise InvalidInputError(
            f"--model_name {name} has no chat template; use a model that follows instructions "
            "(its name often ends in Instruct)"
        )


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
