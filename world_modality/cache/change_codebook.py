"""The codebook of changes: what a cache says of it, and whether it fits what is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from world_modality.cache.contract import CHANGE_ARRAYS, CHANGE_COMMAND, Cache, sha256_of_json
from world_modality.cache.frame_shapes import WindowShape
from world_modality.system.errors import InvalidInputError, MissingFileError


def change_record(manifest: Mapping[str, Any]) -> str | None:
    """Return the hash of a cache's change tokens; None where it has none."""
    record = manifest["arrays"].get("change_tokens")
    return None if record is None else str(record["sha256"])


@dataclass(frozen=True)
class ChangeCodebook:
    """What the change tokens of a cache are: k-means on `e_{t+horizon} - e_t`.

    Attributes:
        num_tokens: size of the codebook.
        horizon: over how many frames the change is; near an episode's end, up to its last frame.
    """

    num_tokens: int
    horizon: int

    @classmethod
    def of(cls, cache: Cache, window: WindowShape) -> "ChangeCodebook":
        """Return what a cache has, for a policy that predicts the change to its last future step.

        Raises:
            MissingFileError: it has none; the message is the command that makes it.
            InvalidInputError: its changes are over another horizon, of other embeddings or fitted
                to other episodes.
        """
        horizon = window.future_offset * window.future_stride
        mend = (
            f"run {CHANGE_COMMAND} --dataset_name {cache.dataset_name} --cache_dir "
            f"{cache.cache_dir} --future_offset {window.future_offset} --future_stride "
            f"{window.future_stride}"
        )
        section, arrays = cache.manifest.get("change_codebook"), cache.manifest["arrays"]
        if section is None or any(name not in arrays for name in CHANGE_ARRAYS):
            raise MissingFileError(f"there are no change tokens in {cache.folder}; {mend}")
        found = {name: section.get(name) for name in ("num_tokens", "horizon")}
        if not all(type(value) is int and value > 0 for value in found.values()):
            raise InvalidInputError(
                f"{cache.manifest_path} has change_codebook {section!r:.80}, expected num_tokens "
                f"and horizon; {mend}"
            )
        if found["horizon"] != horizon:
            raise InvalidInputError(
                f"the change tokens in {cache.folder} are over {found['horizon']} frames, but "
                f"--future_offset {window.future_offset} x --future_stride {window.future_stride} "
                f"asks for {horizon}; give flags that match, or {mend}"
            )
        made_of = {
            "embeddings_sha256": arrays["embeddings"]["sha256"],
            "split_sha256": sha256_of_json(cache.manifest["split"]),
        }
        if any(section.get(name) != value for name, value in made_of.items()):
            raise InvalidInputError(
                f"the change tokens in {cache.folder} were made before its embeddings or its split "
                f"were written again; {mend}"
            )
        return cls(int(section["num_tokens"]), horizon)
