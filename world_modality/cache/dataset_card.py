"""The card of a cache on the hub: what its arrays are, what made them, and how to read them."""

import shlex
from pathlib import Path

from world_modality.cache.contract import Cache
from world_modality.system.card import render_card
from world_modality.system.errors import InvalidInputError

CARD_FILE = "README.md"
SHOWN = ("dataset", "encoder", "codebook", "split")
_TEMPLATE = Path(__file__).with_name("dataset_card.md.j2")
_ABOUT = {
    "embeddings": "pooled embedding of the first camera's image, as the encoder gives it",
    "view_embeddings": "the vectors that a policy reads: views × cells of each",
    "world_tokens": "world tokens: codes of the codebook",
    "codebook_centroids": "the codebook's centroids",
    "states": "the robot's state, raw units",
    "actions": "the action, raw units",
    "episode_index": "the frame's episode",
    "task_index": "the frame's task; `dataset.tasks` of the manifest has the texts",
    "environment_states": "the simulator's own state",
    "instruction_embeddings": "embedding of the episode's instruction",
}


def dataset_card(cache: Cache, repo_id: str, license_name: str | None) -> str:
    """Return the card as Markdown, with the hub's metadata on top.

    Args:
        cache: a complete one.
        repo_id: where it is uploaded to.
        license_name: of the data, as the hub spells it; None states none.

    Raises:
        InvalidInputError: the manifest lacks a section that a complete cache has.
    """
    manifest = cache.manifest
    lacking = [name for name in SHOWN if not manifest.get(name)]
    if lacking:
        raise InvalidInputError(f"{cache.manifest_path} lacks {lacking[0]}; {cache.mend()}")
    arrays = [
        {**record, "file": cache.array_path(name).name, "about": _about(name)}
        for name, record in manifest["arrays"].items()
    ]
    metadata = {
        "task_categories": ["robotics"],
        "tags": ["robotics", "world-tokens", "world-modality"],
        "viewer": False,
        **({"license": license_name} if license_name else {}),
    }
    return render_card(
        _TEMPLATE,
        metadata,
        **{name: manifest[name] for name in SHOWN},
        quoted_name=shlex.quote(cache.dataset_name),
        text=manifest.get("text"),
        image_keys=cache.image_keys,
        fingerprint=cache.fingerprint(with_language=cache.has("instruction_embeddings")),
        arrays=arrays,
        repo_id=repo_id,
        split_name=cache.split,
    )


def _about(name: str) -> str:
    return _ABOUT.get(name, "of the encoder or the codebook, which need it for new frames")
