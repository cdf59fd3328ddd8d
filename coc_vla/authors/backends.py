"""Which author a `--backend` stands for, and what it is asked with."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from coc_vla.authors.rules import Rules
from coc_vla.authors.vlm import Vlm
from world_modality.system.errors import InvalidInputError, require_at_least

Backend = Literal["qwen3-vl", "qwen2.5-vl", "auto", "openai", "rules"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
DEFAULT_MODELS: dict[Backend, str] = {
    "qwen3-vl": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen2.5-vl": "Qwen/Qwen2.5-VL-7B-Instruct",
}
LOCAL_BACKENDS: tuple[Backend, ...] = ("qwen3-vl", "qwen2.5-vl", "auto")


@dataclass(frozen=True, kw_only=True)
class AuthorFlags:
    """An author of labels, as the command line asks for it."""

    least: ClassVar[dict[str, int]] = {
        "concurrency": 1,
        "max_tokens": 1,
        "max_request_retries": 0,
        "temperature": 0,
    }

    backend: Backend = "qwen3-vl"
    """Author of the labels: a transformers model (qwen3-vl, qwen2.5-vl, auto), a server (openai),
    or no model at all (rules)."""
    model_name: str | None = None
    """Hub name or local folder of the model; with --backend openai the name that the server
    knows."""
    model_revision: str | None = None
    """Hub revision of the model."""
    trust_remote_code: bool = False
    """Run code that the model's repository contains."""
    device: str = "auto"
    """Where the model runs: auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …"""
    precision: Precision = "auto"
    """Number format of a model that runs here; auto is bf16 on a GPU, fp32 on a CPU."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server, as in http://localhost:8000/v1. Its key, where it
    needs one, is read from OPENAI_API_KEY."""
    concurrency: int = 16
    """Requests that are sent to the server at once."""
    timeout_s: float = 120.0
    """How long the server may take for a whole answer, and how long it may be silent."""
    max_request_retries: int = 5
    """How often a request is sent again that failed: no connection, no answer in time, status 429
    or 5xx, or an answer that is not well formed."""
    max_tokens: int = 768
    """Largest number of tokens of an answer."""
    temperature: float = 0.0
    """Temperature of sampling; 0 is greedy."""
    top_p: float = 1.0
    """Share of the probability that is sampled from, for a model that runs here."""

    def __post_init__(self) -> None:
        for name, smallest in self.least.items():
            require_at_least(name, getattr(self, name), smallest)
        if not 0 < self.top_p <= 1 or self.timeout_s <= 0:
            raise InvalidInputError("--top_p lies above 0 and up to 1, --timeout_s above 0")
        if (self.backend == "openai") != (self.base_url is not None):
            raise InvalidInputError(
                "--base_url is the address of --backend openai and of no other, as in "
                "--backend openai --base_url http://localhost:8000/v1"
            )
        if self.backend == "auto" and self.model_name is None:
            raise InvalidInputError("--backend auto needs a --model_name")
        if self.backend == "rules" and self.model_name is not None:
            raise InvalidInputError("--backend rules has no model; leave --model_name out")
        if self.model_revision is not None and self.backend not in LOCAL_BACKENDS:
            raise InvalidInputError(
                f"--model_revision pins a hub model, and --backend {self.backend} loads none"
            )

    @property
    def is_model(self) -> bool:
        """Whether a model is asked, which sees pictures; the rules read the recorded motion."""
        return self.backend != "rules"

    @property
    def resolved_model(self) -> str | None:
        """The model's name, None where the server has to be asked for it."""
        return self.model_name or DEFAULT_MODELS.get(self.backend)

    @property
    def author_settings(self) -> dict[str, Any]:
        """What of it an answer depends on."""
        is_local = self.backend in LOCAL_BACKENDS
        return {
            "backend": self.backend,
            "precision": self.precision if is_local else None,
            "max_tokens": self.max_tokens if self.is_model else None,
            "temperature": self.temperature if self.is_model else None,
            "top_p": self.top_p if is_local else None,
        }

    def model_identity(self) -> str | None:
        """Return what tells a local model's files from others of the same name, else None."""
        name = self.resolved_model
        if self.backend not in LOCAL_BACKENDS or name is None:
            return None
        from coc_vla.authors.transformers_vlm import model_identity

        return model_identity(name, self.model_revision)


def build_vlm(flags: AuthorFlags) -> Vlm:
    """Load a model, or connect to a server.

    Raises:
        UserError: the model or the server cannot be used; says why.
    """
    if flags.backend == "rules":
        return Rules()
    if flags.backend == "openai":
        from coc_vla.authors.openai_vlm import OpenAiVlm

        return OpenAiVlm(flags)
    from coc_vla.authors.transformers_vlm import load_transformers_vlm

    return load_transformers_vlm(flags)
