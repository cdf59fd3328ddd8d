"""The cache: the numpy arrays and the manifest that are all that stages share.

Axis legend, used in every signature of the project:
    B batch, N frames, E episodes, T context, H action chunk, K future tokens, A action dim,
    S state dim, D embedding dim, V codebook size, L instruction embedding dim, O dim of the
    simulator's own state, P embeddings a frame and M their dimension as stored, W world tokens a
    frame, R frames whose world tokens are read, X size of the codebook of changes. In memory P, W
    and R have no axis where there is one; RW are the axes R and W together.

`<cache_dir>/<dataset_name>/` holds one file per array, indexed by the dataset's global frame index,
and `<split>_manifest.json`, written last, which says what each array is made of. Readers refuse
whatever differs from it.
"""

import hashlib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_modality.cache.frame_shapes import ObservationShape
from world_modality.system.errors import InvalidInputError, MissingFileError, missing_key
from world_modality.system.output_lock import OutputLock

FORMAT = "world-modality-cache/1"
PRECOMPUTE_COMMAND = "python -m world_modality.precompute_world_tokens"
INSTRUCTION_COMMAND = "python -m world_modality.precompute_instruction_embeddings"
CHANGE_COMMAND = "python -m world_modality.precompute_change_tokens"
CHECKSUM_KEY = "checksum"
SECTIONS = (
    *("dataset", "encoder", "observation", "codebook", "split", "text", "steps"),
    "change_codebook",
)
# These are not even named in the manifest of a cache that has none.
OPTIONAL_SECTIONS = ("observation",)
# What an array's file says of its numbers.
DTYPE_SUFFIXES = {
    **{"float16": "fp16", "float32": "f32", "float64": "f64"},
    **{"uint8": "u8", "int32": "i32", "int64": "i64"},
}
ARRAY_NAME = re.compile("[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class ArraySpec:
    """What one array of the cache is on disk; without `axes` the manifest alone says its shape.

    An axis with a star is there only where it is longer than 1.
    """

    file_stem: str
    dtype: str
    axes: tuple[str, ...]
    command: str = PRECOMPUTE_COMMAND

    def fits(self, num_axes: int) -> bool:
        """Say whether an array may have so many axes."""
        num_always = sum(not axis.startswith("*") for axis in self.axes)
        return not self.axes or num_always <= num_axes <= len(self.axes)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the size of each axis by its letter; of a starred one that is not there, 1."""
        sizes = (*shape, *[1] * (len(self.axes) - len(shape)))
        return {a.removeprefix("*"): size for a, size in zip(self.axes, sizes, strict=False)}


ARRAYS: dict[str, ArraySpec] = {
    "embeddings": ArraySpec("embeddings.fp16", "float16", ("N", "D")),
    # Only where a frame has more than one embedding, or components of them; see `observation`.
    "view_embeddings": ArraySpec("view_embeddings.fp16", "float16", ("N", "P", "M")),
    "world_tokens": ArraySpec("world_tokens.int", "int32", ("N", "*W")),
    "codebook_centroids": ArraySpec("codebook_centroids.f32", "float32", ("V", "D")),
    "states": ArraySpec("states.f32", "float32", ("N", "S")),
    "actions": ArraySpec("actions.f32", "float32", ("N", "A")),
    "episode_index": ArraySpec("episode_index.i32", "int32", ("N",)),
    "task_index": ArraySpec("task_index.i32", "int32", ("N",)),
    # Only where the recording has the simulator's own state (object positions, say).
    "environment_states": ArraySpec("environment_states.f32", "float32", ("N", "O")),
    "instruction_embeddings": ArraySpec(
        "instruction_embeddings.fp16", "float16", ("N", "L"), INSTRUCTION_COMMAND
    ),
    # Only where change tokens were asked for; see `change_codebook`.
    "change_tokens": ArraySpec("change_tokens.int", "int32", ("N",), CHANGE_COMMAND),
    "change_centroids": ArraySpec("change_centroids.f32", "float32", ("X", "D"), CHANGE_COMMAND),
}
"""Arrays that any cache may have. One encoder's or quantiser's own are declared in the manifest."""
# What only a policy that predicts change tokens depends on.
CHANGE_ARRAYS = ("change_tokens", "change_centroids")


def array_spec(name: str, dtype: object) -> ArraySpec | None:
    """Return what an array is on disk: a row of `ARRAYS`, or an encoder's or quantiser's own.

    None where its name is no lower-case identifier, or `dtype` none that a cache may hold.
    """
    if name in ARRAYS:
        return ARRAYS[name]
    suffix = DTYPE_SUFFIXES.get(dtype) if isinstance(dtype, str) else None
    if suffix is None or not ARRAY_NAME.fullmatch(name):
        return None
    return ArraySpec(f"{name}.{suffix}", str(dtype), ())


def cache_folder(cache_dir: Path, dataset_name: str) -> Path:
    """Return `<cache_dir>/<dataset_name>`.

    Raises:
        InvalidInputError: the name is empty, absolute, or would leave `cache_dir` (through `..` or
            a symbolic link).
    """
    root = cache_dir.resolve()
    folder = (root / dataset_name).resolve()
    name = Path(dataset_name)
    if name.is_absolute() or ".." in name.parts or folder == root or root not in folder.parents:
        raise InvalidInputError(
            f"--dataset_name {dataset_name!r} does not name a folder inside --cache_dir "
            f"{cache_dir}; expected a name like HuggingFaceVLA/libero"
        )
    return folder


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex; memory stays flat."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_array(array: np.ndarray) -> str:
    """Return the SHA-256 of the .npy file that an array makes, as the manifest records it."""
    content = io.BytesIO()
    np.save(content, array)
    return hashlib.sha256(content.getvalue()).hexdigest()


def sha256_of_json(content: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the SHA-256 of the rest of it as its `checksum`."""
    return {**content, CHECKSUM_KEY: sha256_of_json(content)}


def without_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Return what `with_checksum` was given; an object that has no checksum is taken as it is.

    Raises:
        ValueError: the content is not what the checksum was made of.
    """
    rest = {name: value for name, value in content.items() if name != CHECKSUM_KEY}
    if CHECKSUM_KEY in content and sha256_of_json(rest) != content[CHECKSUM_KEY]:
        raise ValueError(f"its {CHECKSUM_KEY} differs from its content: changed or damaged")
    return rest


def image_keys_of(dataset: Mapping[str, Any]) -> list[str]:
    """Return the cameras that a manifest's `dataset` section names, in the order of the views."""
    keys = dataset.get("image_keys") or [dataset.get("image_key")]
    return [str(key) for key in keys if key is not None]


class Cache:
    """One split of one dataset's cache folder, for reading.

    Args:
        cache_dir: the `--cache_dir` of the stages.
        dataset_name: LeRobot repository id, or the name given to a local dataset.
        split: prefix of the file names; LeRobot datasets have one, `train`.
    """

    def __init__(self, cache_dir: Path, dataset_name: str, split: str = "train") -> None:
        self.folder = cache_folder(cache_dir, dataset_name)
        self.cache_dir = cache_dir
        self.dataset_name = dataset_name
        if not split or Path(split).name != split:
            raise InvalidInputError(f"--split {split!r} is no file name prefix; expected train")
        self.split = split
        self._manifest: dict[str, Any] | None = None

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is."""
        return self.folder / f"{self.split}_manifest.json"

    def array_spec(self, name: str, dtype: str | None = None) -> ArraySpec:
        """Return what an array is on disk; `dtype` is that of one that is not declared yet.

        Raises:
            MissingKeyError: neither the contract nor the manifest knows it.
        """
        if dtype is None and name not in ARRAYS:
            record = self.manifest["arrays"].get(name)
            if record is None:
                known = {**ARRAYS, **self.manifest["arrays"]}
                raise missing_key("cache array", name, known, f"the cache {self.folder}")
            dtype = record["dtype"]
        spec = array_spec(name, dtype)
        assert spec is not None, f"no cache holds {name} of {dtype}"
        return spec

    def array_path(self, name: str, dtype: str | None = None) -> Path:
        """Where an array is; arguments and errors as those of `array_spec`."""
        return self.folder / f"{self.split}_{self.array_spec(name, dtype).file_stem}.npy"

    def lock(self, stage: str, *, wait_s: float = 0.0) -> OutputLock:
        """Return a stage's lock on this cache; stages with different names run side by side."""
        name = f".{self.split}_{stage}.lock"
        return OutputLock(self.folder, "--cache_dir", name=name, wait_s=wait_s)

    def mend(self, name: str = "embeddings") -> str:
        """Return the command that writes the array again."""
        command = ARRAYS[name].command if name in ARRAYS else PRECOMPUTE_COMMAND
        return (
            f"run {command} --dataset_name {self.dataset_name} --cache_dir {self.cache_dir} … again"
        )

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, read once.

        Raises:
            MissingFileError: nothing has been precomputed here.
            InvalidInputError: the file is not a manifest of this format.
        """
        if self._manifest is not None:
            return self._manifest
        path = self.manifest_path
        if not path.exists():
            raise MissingFileError(
                f"no cache at {self.folder} (expected {path.name}); {self.mend()}"
            )
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{path} is not JSON ({error}); {self.mend()}") from error
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        if found != FORMAT:
            raise InvalidInputError(
                f"{path} has format {found!r}, expected {FORMAT!r}; {self.mend()}"
            )
        if not isinstance(manifest.get("arrays"), dict):
            raise InvalidInputError(f"{path} lists no arrays; {self.mend()}")
        for section in SECTIONS:
            if not isinstance(manifest.get(section, {}), dict | None):
                raise InvalidInputError(
                    f"{path} has {section} {manifest[section]!r}, expected an object; {self.mend()}"
                )
        for name, record in manifest["arrays"].items():
            spec = array_spec(name, record.get("dtype")) if isinstance(record, dict) else None
            expected = None if spec is None else f"{self.split}_{spec.file_stem}.npy"
            if expected is None or record.get("file", expected) != expected:
                raise InvalidInputError(
                    f"{path} describes {name!r} by {record!r}, expected the file {expected}; "
                    f"{self.mend()}"
                )
        try:
            self._manifest = without_checksum(manifest)
        except ValueError as error:
            raise InvalidInputError(f"{path} was altered ({error}); {self.mend()}") from error
        return self._manifest

    def has(self, name: str) -> bool:
        """Say whether the manifest lists the array."""
        return name in self.manifest["arrays"]

    @property
    def model_arrays(self) -> tuple[str, ...]:
        """Names of the encoder's and the quantiser's own arrays: those without a row per frame.

        The codebook of changes is not among them: no rollout needs it.
        """
        names = [name for name in self.manifest["arrays"] if name not in CHANGE_ARRAYS]
        return tuple(sorted(name for name in names if "N" not in self.array_spec(name).axes))

    @property
    def num_tokens(self) -> int:
        """Codebook size V.

        Raises:
            InvalidInputError: the manifest describes no codebook.
        """
        codebook = self.manifest.get("codebook") or {}
        num_tokens = codebook.get("num_tokens")
        if type(num_tokens) is not int or num_tokens < 1:
            raise InvalidInputError(
                f"{self.manifest_path} has a codebook of {num_tokens!r} tokens, expected a whole "
                f"number above 0; {self.mend('world_tokens')}"
            )
        return num_tokens

    @property
    def num_slots(self) -> int:
        """World tokens a frame W.

        Raises:
            InvalidInputError: the manifest says something else than a whole number.
        """
        num_slots = (self.manifest.get("codebook") or {}).get("num_slots", 1)
        if type(num_slots) is not int or num_slots < 1:
            raise InvalidInputError(
                f"{self.manifest_path} has {num_slots!r} world tokens a frame, expected a whole "
                f"number above 0; {self.mend('world_tokens')}"
            )
        return num_slots

    @property
    def image_keys(self) -> list[str]:
        """The cameras that were embedded, in the order of the views."""
        return image_keys_of(self.manifest.get("dataset") or {})

    @property
    def observation_array(self) -> str:
        """The array that a policy reads: `view_embeddings` where there is one, or `embeddings`."""
        return "view_embeddings" if self.has("view_embeddings") else "embeddings"

    @property
    def observation_shape(self) -> ObservationShape:
        """What a policy sees of a frame.

        Raises:
            MissingFileError: the embeddings were never written.
            InvalidInputError: the manifest contradicts itself.
        """
        row_shape = self._row_shape(self.observation_array)
        if self.observation_array == "embeddings":
            return ObservationShape(row_shape[-1])
        section = self.manifest.get("observation") or {}
        keys = section.get("image_keys")
        grid_size, dim = section.get("grid_size"), section.get("embedding_dim")
        if not (isinstance(keys, list) and type(grid_size) is int and type(dim) is int):
            raise InvalidInputError(
                f"{self.manifest_path} has observation {section!r:.80}, expected image_keys, "
                f"grid_size and embedding_dim; {self.mend('view_embeddings')}"
            )
        shape = ObservationShape(dim, len(keys), grid_size)
        if row_shape != [shape.num_vectors, dim]:
            raise InvalidInputError(
                f"view_embeddings holds {row_shape} a frame, but {self.manifest_path.name} says "
                f"{len(keys)} views of {grid_size}x{grid_size} cells of dimension {dim} in "
                f"{self.folder}; {self.mend('view_embeddings')}"
            )
        return shape

    @property
    def bytes_per_frame(self) -> int:
        """What all arrays that have a row per frame hold of one frame."""
        specs = {name: self.array_spec(name) for name in self.manifest["arrays"]}
        return sum(
            math.prod(self._row_shape(name)) * np.dtype(spec.dtype).itemsize
            for name, spec in specs.items()
            if "N" in spec.axes
        )

    def _row_shape(self, name: str) -> list[int]:
        """Return the shape of one frame's row, as the manifest has it."""
        record = self.manifest["arrays"].get(name)
        if record is None:
            raise MissingFileError(f"{name} is missing in {self.folder}; {self.mend(name)}")
        shape = record.get("shape")
        is_shape = isinstance(shape, list) and all(type(size) is int for size in shape)
        if not is_shape or not self.array_spec(name).fits(len(shape)):
            raise InvalidInputError(
                f"{self.manifest_path} gives {name} the shape {shape!r:.80}; {self.mend(name)}"
            )
        return list(shape[1:])

    @property
    def episode_key(self) -> str:
        """The dataset's column that numbers the episodes."""
        return str((self.manifest.get("dataset") or {}).get("episode_key", "episode_index"))

    @property
    def episode_ids(self) -> list[int] | None:
        """The ids that `episode_index` counts, None where it holds the ids themselves.

        Raises:
            InvalidInputError: the manifest lists something else than whole numbers.
        """
        ids = (self.manifest.get("dataset") or {}).get("episode_ids")
        if ids is None:
            return None
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**63 for i in ids):
            raise InvalidInputError(
                f"{self.manifest_path} has episode_ids that are no list of whole numbers; "
                f"{self.mend('episode_index')}"
            )
        return ids

    def load(self, name: str) -> np.ndarray:
        """Map one array read-only, after checking it against the manifest, SHA-256 included.

        Raises:
            MissingFileError: the array was never written, or its file is gone.
            InvalidInputError: another dtype, shape or content than the manifest says.
        """
        path = self.array_path(name)
        record = self.manifest["arrays"].get(name)
        if record is None or not path.exists():
            raise MissingFileError(f"{name} is missing: expected {path}; {self.mend(name)}")
        if self.cache_dir.resolve() not in path.resolve().parents:
            raise InvalidInputError(
                f"{path} is a symbolic link out of --cache_dir {self.cache_dir}; {self.mend(name)}"
            )
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, EOFError, TypeError, SyntaxError, tokenize.TokenError) as error:
            # numpy says "mmap length is greater than file size" for a truncated file; it evaluates
            # the header as Python, so that a damaged one can raise whatever parsing raises.
            raise InvalidInputError(
                f"{path} is truncated or no array ({error}); {self.mend(name)}"
            ) from error
        spec = self.array_spec(name)
        expected = (spec.dtype, list(record.get("shape", [])))
        found = (str(array.dtype), list(array.shape))
        if found != expected or not spec.fits(array.ndim):
            raise InvalidInputError(
                f"{path} holds {found[0]} {found[1]}, but {self.manifest_path.name} says "
                f"{expected[0]} {expected[1]}; {self.mend(name)}"
            )
        if sha256_of_file(path) != record.get("sha256"):
            raise InvalidInputError(
                f"{path} is not the file that {self.manifest_path.name} describes (its SHA-256 "
                f"differs): changed, damaged, or from another run; {self.mend(name)}"
            )
        return array

    def fingerprint(self, *, with_language: bool = False) -> str:
        """Return the hash of all that a policy trained here depends on.

        Instruction embeddings count only for a policy that reads them, so that adding them to a
        cache leaves checkpoints without language valid. Change tokens do not count, so that arms
        that predict them can be compared with those that do not; see `change_record`.
        """
        manifest = self.manifest
        sections = ["dataset", "encoder", "codebook", "split"] + (["text"] if with_language else [])
        sections += [name for name in OPTIONAL_SECTIONS if name in manifest]
        unused = [*CHANGE_ARRAYS, *([] if with_language else ["instruction_embeddings"])]
        arrays = {
            name: record["sha256"]
            for name, record in manifest["arrays"].items()
            if name not in unused
        }
        return sha256_of_json({"arrays": arrays, **{name: manifest.get(name) for name in sections}})


def require_arrays(cache: Cache, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Map several arrays and check that they agree with each other.

    World tokens are checked together with the codebook that they are tokens of, which is one of
    pooled embeddings, or of what `view_embeddings` holds.

    Raises:
        InvalidInputError: the frame counts, embedding dims or codebook sizes differ, or a token
            lies outside the codebook.
    """
    arrays = {name: cache.load(name) for name in names}
    sizes: dict[str, tuple[str, int]] = {}
    checked = dict(arrays)
    if "world_tokens" in arrays:
        sizes["V"] = ("the manifest's codebook", cache.num_tokens)
        sizes["W"] = ("the manifest's codebook", cache.num_slots)
        checked |= {name: cache.load(name) for name in cache.model_arrays if name not in arrays}
    if "view_embeddings" in arrays:
        shape = cache.observation_shape
        sizes["P"] = ("the manifest's observation", shape.num_vectors)
        sizes["M"] = ("the manifest's observation", shape.embedding_dim)
    for name, array in checked.items():
        for axis, size in _sizes_of(name, array, cache).items():
            first, expected = sizes.setdefault(axis, (name, size))
            if size != expected:
                raise InvalidInputError(
                    f"{name} has {axis}={size} but {first} has {axis}={expected} in "
                    f"{cache.folder}; {cache.mend(name)}"
                )
    if "world_tokens" in arrays:
        tokens = arrays["world_tokens"]
        if tokens.size and (tokens.min() < 0 or tokens.max() >= cache.num_tokens):
            raise InvalidInputError(
                f"world_tokens has values in [{tokens.min()}, {tokens.max()}] but the codebook has "
                f"V={cache.num_tokens} in {cache.folder}; {cache.mend('world_tokens')}"
            )
    return arrays


def _sizes_of(name: str, array: np.ndarray, cache: Cache) -> dict[str, int]:
    sizes = cache.array_spec(name).sizes(array.shape)
    is_of_cells = (cache.manifest.get("codebook") or {}).get("slots", "frame") != "frame"
    if name == "codebook_centroids" and is_of_cells and cache.has("view_embeddings"):
        sizes["M"] = sizes.pop("D")
    return sizes
