"""Which author a `--backend` stands for."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from coc_vla.authors.rules import MODEL_NAME, Rules
from coc_vla.authors.vlm import Vlm
from world_modality.system.errors import InvalidInputError

Backend = Literal["qwen3-vl", "qwen2.5-vl", "auto", "openai", "rules"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
DEFAULT_MODELS: dict[Backend, str] = {
    "qwen3-vl": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen2.5-vl": "Qwen/Qwen2.5-VL-7B-Instruct",
}
LOCAL_BACKENDS: tuple[Backend, ...] = ("qwen3-vl", "qwen2.5-vl", "auto")


@dataclass(frozen=True)
class BackendRequest:
    """An author, as the command line asks for it.

    Attributes:
        backend: what kind.
        model_name: hub name, local folder, or what a server calls it.
        revision: hub revision of a local model.
        trust_remote_code: whether a local model may run code of its own files.
        device: of a local model, as in `--device`.
        precision: of a local model; bf16 on a GPU and fp32 on a CPU where `auto`.
        max_tokens: of an answer.
        temperature: 0 is greedy.
        top_p: of sampling, for a local model.
        base_url: of a server.
        timeout_s: of a server's answer.
        max_request_retries: of a request to a server.
        concurrency: requests to a server at once.
    """

    backend: Backend
    model_name: str | None
    revision: str | None
    trust_remote_code: bool
    device: str
    precision: Precision
    max_tokens: int
    temperature: float
    top_p: float
    base_url: str | None
    timeout_s: float
    max_request_retries: int
    concurrency: int

    def __post_init__(self) -> None:
        assert self.backend in get_args(Backend)
        if (self.backend == "openai") != (self.base_url is not None):
            raise InvalidInputError(
                "--base_url is the address of --backend openai and of no other, as in "
                "--backend openai --base_url http://localhost:8000/v1"
            )
        if self.backend == "auto" and self.model_name is None:
            raise InvalidInputError("--backend auto needs a --model_name")
        if self.backend == "rules" and self.model_name is not None:
            raise InvalidInputError("--backend rules has no model; leave --model_name out")
        if self.revision is not None and self.backend not in LOCAL_BACKENDS:
            raise InvalidInputError(
                f"--model_revision pins a hub model, and --backend {self.backend} loads none"
            )

    @property
    def is_concurrent(self) -> bool:
        """Whether episodes are asked about at once, not in batches."""
        return self.backend == "openai"

    @property
    def resolved_model(self) -> str | None:
        """The model's name, None where the server has to be asked for it."""
        if self.backend == "rules":
            return MODEL_NAME
        return self.model_name or DEFAULT_MODELS.get(self.backend)

    def identity(self) -> str | None:
        """Return what tells a local model's files from others of the same name, else None."""
        name = self.resolved_model
        if self.backend not in LOCAL_BACKENDS or name is None:
            return None
        from coc_vla.authors.transformers_vlm import model_identity

        return model_identity(name, self.revision)

    @property
    def settings(self) -> dict[str, Any]:
        """What of it an answer depends on."""
        is_model = self.backend != "rules"
        return {
            "backend": self.backend,
            "precision": self.precision if self.backend in LOCAL_BACKENDS else None,
            "max_tokens": self.max_tokens if is_model else None,
            "temperature": self.temperature if is_model else None,
            "top_p": self.top_p if self.backend in LOCAL_BACKENDS else None,
        }


def build_vlm(request: BackendRequest) -> Vlm:
    """Load a model, or connect to a server.

    Raises:
        UserError: the model or the server cannot be used; says why.
    """
    if request.backend == "rules":
        return Rules()
    if request.backend == "openai":
        return _server(request)
    from coc_vla.authors.transformers_vlm import GenerationSettings, load_transformers_vlm
    from world_modality.system.device import resolve_device

    name = request.resolved_model
    assert name is not None  # checked above for `auto`, the others have a default
    return load_transformers_vlm(
        name,
        request.backend,
        device=resolve_device(request.device),
        settings=GenerationSettings(request.max_tokens, request.temperature, request.top_p),
        precision=request.precision,
        revision=request.revision,
        trust_remote_code=request.trust_remote_code,
    )


def _server(request: BackendRequest) -> Vlm:
    from coc_vla.authors.openai_vlm import OpenAiSettings, OpenAiVlm

    assert request.base_url is not None
    return OpenAiVlm(
        OpenAiSettings(
            base_url=request.base_url,
            model_name=request.model_name,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            timeout_s=request.timeout_s,
            max_request_retries=request.max_request_retries,
            concurrency=request.concurrency,
        )
    )
