"""The labelling stage's settings: its command line, and what it refuses before it starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coc_vla.authors.backends import Backend, BackendRequest, Precision
from coc_vla.authors.prompt import DEFAULT_PROMPT_PATH
from coc_vla.events.hand_axes import Side
from coc_vla.events.keyframes import KeyframeChoice
from coc_vla.labels.episode_tasks import TaskRequest
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class CocGenerationConfig:
    """Write one line for each episode of a dataset: a chain of causes, or why there is none.

    A line is on the disk before the next episode is finished; a run that is killed goes on with
    --resume.
    """

    dataset_name: str
    """Repository id (HuggingFaceVLA/libero), or the name given to a local dataset."""
    output_jsonl: Path
    """Receives one JSON line an episode; settings, config and summary are written beside it."""
    dataset_root: Path | None = None
    """Folder of a local dataset; otherwise HF_LEROBOT_HOME, then the hub."""
    revision: str | None = None
    """Hub revision (tag, branch or commit) to pin the dataset to."""
    image_key: str | None = None
    """Camera to show; may be left out where there is only one."""
    instruction_key: str | None = None
    """Column of each frame's text. Left out, or `task` or `instruction` where the dataset has no
    such column: the dataset's own task texts."""
    episode_id_key: str = "episode_index"
    """Column that numbers the episodes."""
    task_index_key: str = "task_index"
    """Column that numbers the tasks."""

    backend: Backend = "qwen3-vl"
    """A model of transformers (qwen3-vl, qwen2.5-vl, auto), a server (openai), or no model at all
    (rules)."""
    model_name: str | None = None
    """Hub name or local folder; with openai what the server calls it."""
    model_revision: str | None = None
    """Hub revision of the model."""
    trust_remote_code: bool = False
    """Let the model's own files run code."""
    device: str = "auto"
    """auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …"""
    precision: Precision = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server, as in http://localhost:8000/v1. Its key, where it
    needs one, is read from OPENAI_API_KEY."""
    concurrency: int = 16
    """Requests to the server at once."""
    timeout_s: float = 120.0
    """How long the server may take for a whole answer."""
    max_request_retries: int = 5
    """Further tries of a request that failed: no connection, silence, 429, 5xx, nonsense."""
    max_failures_in_row: int = 20
    """Failed requests in a row that end the run."""

    batch_size: int = 8
    """Episodes a batch, for a model that runs here."""
    max_tokens: int = 768
    """Tokens of an answer."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Share of the probability that is sampled from, for a model that runs here."""
    seed: int = 0
    """Of sampling; each episode has a seed of its own, made from it."""
    max_retries: int = 2
    """How often a refused answer is asked for again, with the reason."""

    prompt_file: Path = DEFAULT_PROMPT_PATH
    """The question, a line `--- retry ---`, and what is added after a refused answer."""
    keyframes: KeyframeChoice = "uniform"
    """uniform: start, middle, end; events: where the gripper acts and the hand pauses."""
    num_keyframes: int | None = None
    """By default 3, with events at most 6."""
    max_image_side: int = 768
    """Larger images are made smaller."""
    state_key: str = "observation.state"
    """Column of the state, for `--keyframes events` and `--backend rules`."""
    action_key: str = "action"
    """Column of the action, for the same."""
    position_dims: tuple[int, int, int] | None = None
    """Dimensions of the state with the hand's position, height last; by default those whose names
    say x, y, z."""
    position_axes: tuple[Side, Side] | None = None
    """Which way the first two of them grow, as the robot sees it: right forward in MetaWorld,
    forward left in LIBERO. The rules then say where a movement leads, not only that it is one."""
    gripper_dim: int | Literal["none"] | None = None
    """Dimension of the action that commands the gripper; by default the one named gripper."""
    gripper_commands: tuple[float, float] = (-1.0, 1.0)
    """The command that opens the gripper and the one that closes it."""

    episodes: str | None = None
    """Only these, as in 0:100,205 (the end of a range is not in it)."""
    max_episodes: int | None = None
    """Only the first so many of them."""
    resume: bool = False
    """Go on with the file: keep its labels, try its errors again."""
    overwrite: bool = False
    """Throw an existing file's content away."""
    allow_changed_settings: bool = False
    """Let --resume go on with another prompt, model or setting; each line says what it is from."""

    @property
    def backend_request(self) -> BackendRequest:
        """The author asked for."""
        return BackendRequest(
            backend=self.backend,
            model_name=self.model_name,
            revision=self.model_revision,
            trust_remote_code=self.trust_remote_code,
            device=self.device,
            precision=self.precision,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            base_url=self.base_url,
            timeout_s=self.timeout_s,
            max_request_retries=self.max_request_retries,
            concurrency=self.concurrency,
        )

    @property
    def task_request(self) -> TaskRequest:
        """The episodes asked for, and what is shown of each."""
        return TaskRequest(
            image_key=self.image_key,
            instruction_key=self.instruction_key,
            episode_key=self.episode_id_key,
            task_key=self.task_index_key,
            keyframes=self.keyframes,
            num_keyframes=self.num_keyframes,
            max_image_side=self.max_image_side,
            # A server decodes files itself; decoding and encoding them here is for nothing.
            as_recorded=self.backend == "openai",
            state_key=self.state_key,
            action_key=self.action_key,
            position_dims=self.position_dims,
            position_axes=self.position_axes,
            gripper_dim=self.gripper_dim,
            gripper_commands=self.gripper_commands,
            episodes=self.episodes,
            max_episodes=self.max_episodes,
        )


def check_config(config: CocGenerationConfig) -> None:
    """Refuse flags that contradict each other or make no sense, before anything is opened."""
    if config.resume and config.overwrite:
        raise InvalidInputError("--resume keeps the file and --overwrite empties it; give one")
    if config.allow_changed_settings and not config.resume:
        raise InvalidInputError("--allow_changed_settings is for --resume")
    least = {
        "batch_size": 1,
        "concurrency": 1,
        "max_tokens": 1,
        "max_image_side": 1,
        "max_retries": 0,
        "max_request_retries": 0,
        "max_failures_in_row": 1,
        "temperature": 0,
        "seed": 0,
    }
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise InvalidInputError(f"--{name} must be at least {smallest}")
    if not 0 < config.top_p <= 1 or config.timeout_s <= 0:
        raise InvalidInputError("--top_p lies above 0 and up to 1, --timeout_s above 0")
