"""Show which frames share a world token: one grid a token, and all of them on one sheet.

Where views or cells have tokens of their own, these are shown: a cell beside its frame, in which it
is outlined.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from world_modality.cache.contract import Cache, require_arrays
from world_modality.cache.hub_cache import open_cache
from world_modality.evaluation.slot_places import (
    SlotPlace,
    cell_images,
    seen_box,
    slot_places,
)
from world_modality.evaluation.token_grid import (
    Tile,
    draw_contact_sheet,
    draw_grid,
    save_jpeg,
    thumbnail,
)
from world_modality.precompute.cached_dataset import open_cached_dataset
from world_modality.source.episodes import Episodes
from world_modality.source.frame_decoding import frame_blocks
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError, require_at_least
from world_modality.system.output_lock import OutputLock

FRAMES_FILE = "token_frames.json"
GRID_NAME = re.compile(r"token_\d+\.jpg")
SHEET_FILE = "contact_sheet.jpg"
DECODE_BATCH = 64


@dataclass(frozen=True)
class InspectConfig:
    """Draw the frames behind the world tokens, to see with one's own eyes what a token means."""

    dataset_name: str
    """Repository id, or the name given to a local dataset."""
    dataset_root: Path | None = None
    """Folder of a local dataset; without it HF_LEROBOT_HOME is searched, then the hub."""
    revision: str | None = None
    """Hub revision of the dataset."""
    convert: bool = False
    """Read a dataset of format v2.1 from `<folder>_v3` beside it, which LeRobot's converter writes
    where it is not there yet; the dataset itself stays as it is."""
    cache_dir: Path = Path("cache")
    """Folder of all caches."""
    cache_repo: str | None = None
    """The hub's repository that holds the cache instead, user/name or user/name@revision; it is
    fetched, and checked against its manifest."""
    split: str = "train"
    """Prefix of the cache's files."""
    image_key: str | None = None
    """Camera to show; the one that was embedded where left out. Where views or cells have tokens of
    their own: show only those of this camera."""
    slot: int | None = None
    """Where a frame has several world tokens: show only this one, counted from 0."""
    out_dir: Path = Path("token_inspection")
    """Folder that receives token_<id>.jpg, contact_sheet.jpg and token_frames.json."""
    num_tokens: int = 10
    """How many tokens to show, the most frequent ones first."""
    tokens: tuple[int, ...] = ()
    """Show these tokens instead of the most frequent ones."""
    samples_per_token: int = 12
    """How many frames of a token to show, from different episodes first."""
    seed: int = 0
    """Seed of the choice of frames."""


@dataclass(frozen=True)
class TokenSample:
    """The frames drawn for one token, and how many frames have it in how many episodes.

    Attributes:
        token: its id.
        num_frames: how many frames have it, or vectors of frames (views, cells).
        num_episodes: in how many episodes.
        frames: drawn.
        vectors: which vector of each of these frames has it; None where a frame has one.
    """

    token: int
    num_frames: int
    num_episodes: int
    frames: Int[np.ndarray, " N"]
    vectors: Int[np.ndarray, " N"] | None = None

    @property
    def file_name(self) -> str:
        """The grid's file."""
        return f"token_{self.token}.jpg"


@dataclass(frozen=True)
class ShownSlots:
    """Which of a frame's tokens are shown.

    Attributes:
        slots: of the tokens, in [0, W).
        vectors: of the frame that these tokens are of, likewise.
        places: of all vectors of a frame that have tokens.
    """

    slots: Int[np.ndarray, " S"]
    vectors: Int[np.ndarray, " S"]
    places: list[SlotPlace]

    @classmethod
    def of(cls, cache: Cache, config: InspectConfig) -> "ShownSlots":
        """Return the slots that the flags choose.

        Raises:
            InvalidInputError: there is no such slot, or none of this camera.
        """
        places = slot_places(cache)
        num_slots, num_levels = cache.num_slots, cache.num_slots // len(places)
        slots = np.arange(num_slots)
        if config.slot is not None and not 0 <= config.slot < num_slots:
            raise InvalidInputError(
                f"--slot {config.slot}: a frame of {config.dataset_name} has {num_slots} world "
                f"token{'s' if num_slots > 1 else ''}, numbered from 0 to {num_slots - 1}"
            )
        if config.slot is not None:
            slots = slots[[config.slot]]
        elif num_levels > 1:
            # A code means something else at each level.
            slots = slots[::num_levels]
            print(
                f"note: shown are the tokens of the first of {num_levels} levels; give --slot for "
                "those of another"
            )
        vectors = slots // num_levels
        if len(places) > 1 and config.image_key is not None:
            seen = np.array([places[one].image_key == config.image_key for one in vectors])
            if not seen.any():
                cameras = ", ".join(dict.fromkeys(place.image_key for place in places))
                raise InvalidInputError(
                    f"--image_key {config.image_key} is none of the cameras that the shown tokens "
                    f"are of: {cameras}"
                )
            slots, vectors = slots[seen], vectors[seen]
        return cls(slots, vectors, places)

    @property
    def are_parts(self) -> bool:
        """Whether tokens are of parts of a frame."""
        return len(self.places) > 1

    def tokens(self, world_tokens: Int[np.ndarray, " N *W"]) -> Int[np.ndarray, " NS"]:
        """Return the tokens that are shown, frame by frame."""
        return world_tokens.reshape(len(world_tokens), -1)[:, self.slots].reshape(-1)

    def of_frames(self, sample: TokenSample) -> TokenSample:
        """Return a sample of `tokens` as frames, and vectors of them."""
        frames, shown = np.divmod(sample.frames, len(self.slots))
        vectors = self.vectors[shown] if self.are_parts else None
        return dataclasses.replace(sample, frames=frames, vectors=vectors)


def run(config: InspectConfig) -> list[TokenSample]:
    """Draw the grids, the contact sheet and the list of frames."""
    require_at_least("samples_per_token", config.samples_per_token, 1)
    cache = open_cache(config)
    arrays = require_arrays(cache, ("world_tokens", "episode_index", "task_index"))
    shown = ShownSlots.of(cache, config)
    world_tokens = shown.tokens(np.asarray(arrays["world_tokens"]))
    episodes = Episodes.from_frames(
        arrays["episode_index"], arrays["task_index"], cache.episode_ids
    )
    chosen = choose_tokens(world_tokens, cache.num_tokens, config.num_tokens, config.tokens)
    rng = np.random.default_rng(config.seed)
    episode_of_token = np.repeat(episodes.of_frame, len(shown.slots))
    samples = [
        shown.of_frames(
            sample_frames(token, world_tokens, episode_of_token, config.samples_per_token, rng)
        )
        for token in chosen
    ]
    source = _source_of(cache, config)
    with OutputLock(config.out_dir, "--out_dir"):
        tiles = _images(cache, config, source, shown, samples)
        report = _report(cache, config, shown, samples, episodes, arrays["task_index"])
        _write(config, samples, report, tiles)
    print(f"{len(samples)} grids, {SHEET_FILE} and {FRAMES_FILE} are in {config.out_dir}")
    for token in report["tokens"]:
        print(
            f"  token {token['token']:>5}: {token['num_frames']} {_unit(report)} "
            f"({token['share']:.1%}) in {token['num_episodes']} episodes"
        )
    if report["note"]:
        print(f"note: {report['note']}")
    return samples


def choose_tokens(
    world_tokens: Int[np.ndarray, " N"], num_codes: int, num_tokens: int, tokens: tuple[int, ...]
) -> list[int]:
    """Return the tokens to show: those asked for, or the most frequent, ties by id.

    Raises:
        InvalidInputError: a token outside the codebook, or one that no frame has.
    """
    counts = np.bincount(world_tokens, minlength=num_codes)
    for token in tokens:
        if not 0 <= token < num_codes:
            raise InvalidInputError(f"--tokens {token}: tokens lie between 0 and {num_codes - 1}")
        if counts[token] == 0:
            used = np.flatnonzero(counts)[:20].tolist()
            raise InvalidInputError(f"--tokens {token}: no frame has it; used are {used} …")
    if tokens:
        return list(tokens)
    require_at_least("num_tokens", num_tokens, 1)
    num_used = int((counts > 0).sum())
    if num_tokens > num_used:
        print(f"--num_tokens {num_tokens}, but only {num_used} of {num_codes} codes are used")
    return [int(t) for t in np.argsort(-counts, kind="stable")[: min(num_tokens, num_used)]]


def sample_frames(
    token: int,
    world_tokens: Int[np.ndarray, " N"],
    episode_of_frame: Int[np.ndarray, " N"],
    num_samples: int,
    rng: np.random.Generator,
) -> TokenSample:
    """Draw frames of a token: one from each episode before a second from any."""
    frames = rng.permutation(np.flatnonzero(world_tokens == token))
    episodes = episode_of_frame[frames]
    # The how-manieth frame of its episode each one is, in the random order.
    by_episode = np.argsort(episodes, kind="stable")
    starts = np.flatnonzero(np.diff(episodes[by_episode], prepend=-1))
    turn = np.empty(len(frames), dtype=np.int64)
    turn[by_episode] = np.arange(len(frames)) - np.repeat(
        starts, np.diff(np.append(starts, len(frames)))
    )
    chosen = frames[np.argsort(turn, kind="stable")[:num_samples]]
    return TokenSample(token, len(frames), len(starts), np.sort(chosen))


def _source_of(cache: Cache, config: InspectConfig) -> LeRobotSource:
    """Open the dataset that the cache was made from; note where another camera is shown.

    Raises:
        InvalidInputError: the dataset found is another one.
    """
    source = open_cached_dataset(
        cache, config.dataset_root, config.revision, config.image_key, config.convert
    )
    if config.image_key is not None and config.image_key not in cache.image_keys:
        print(
            f"note: the tokens were made from {cache.manifest['dataset']['image_key']}, shown is "
            f"{config.image_key}"
        )
    return source


# The images of one vector of a frame: in its token's grid, and on the contact sheet.
Images = tuple[np.ndarray, np.ndarray | None]


def _images(
    cache: Cache,
    config: InspectConfig,
    source: LeRobotSource,
    shown: ShownSlots,
    samples: list[TokenSample],
) -> dict[tuple[int, int], Images]:
    """Decode each frame once and keep it small; by frame and vector."""
    wanted: dict[str, dict[int, set[int]]] = {}
    for sample in samples:
        for frame, vector in _members(sample):
            key = shown.places[vector].image_key
            key = key if shown.are_parts else source.camera(config.image_key or key)
            wanted.setdefault(key, {}).setdefault(frame, set()).add(vector)
    preprocessing = cache.manifest["encoder"].get("preprocessing") or {}
    images: dict[tuple[int, int], Images] = {}
    for image_key, vectors_of in wanted.items():
        frames = np.array(sorted(vectors_of))
        blocks = frame_blocks(source, image_key, frames, DECODE_BATCH)
        decoded = (image for block in blocks for image in block)
        for frame, image in zip(frames.tolist(), decoded, strict=True):
            for vector in vectors_of[frame]:
                images[frame, vector] = _tile_images(
                    cache, shown.places[vector], preprocessing, image
                )
    return images


def _tile_images(
    cache: Cache, place: SlotPlace, preprocessing: dict[str, Any], image: np.ndarray
) -> Images:
    if place.row is None or place.column is None:
        return thumbnail(image), None
    seen = seen_box(preprocessing, image.shape[1], image.shape[0])
    grid_size = cache.observation_shape.grid_size
    return cell_images(image, seen.cell(grid_size, place.row, place.column))


def _members(sample: TokenSample) -> list[tuple[int, int]]:
    """Return frame and vector of each member of a sample."""
    vectors = np.zeros(len(sample.frames), int) if sample.vectors is None else sample.vectors
    return list(zip(sample.frames.tolist(), vectors.tolist(), strict=True))


def _report(
    cache: Cache,
    config: InspectConfig,
    shown: ShownSlots,
    samples: list[TokenSample],
    episodes: Episodes,
    task_index: Int[np.ndarray, " N"],
) -> dict[str, Any]:
    """Return what the JSON says: which frames were drawn, and whose they are."""
    tasks = cache.manifest["dataset"]["tasks"]
    position = episodes.of_frame

    def describe(frame: int, vector: int) -> dict[str, Any]:
        episode = int(position[frame])
        place = {"vector": vector, **shown.places[vector].record} if shown.are_parts else {}
        return {
            "frame": frame,
            "episode_index": int(episodes.ids[episode]),
            "frame_in_episode": frame - int(episodes.starts[episode]),
            "task": tasks[str(int(task_index[frame]))],
            **place,
        }

    encoder = cache.manifest["encoder"]
    cameras = list(dict.fromkeys(shown.places[one].image_key for one in shown.vectors))
    slots: dict[str, Any] = {"slots": shown.slots.tolist()} if cache.num_slots > 1 else {}
    if shown.are_parts:
        slots["unit"] = "views" if shown.places[0].row is None else "cells"
    return {
        "dataset_name": cache.dataset_name,
        "image_key": ", ".join(cameras) if shown.are_parts else config.image_key or cameras[0],
        "encoder": encoder["name"],
        "is_stand_in": encoder["is_stand_in"],
        "note": encoder["note"],
        **slots,
        "tokens": [
            {
                "token": sample.token,
                "file": sample.file_name,
                "num_frames": sample.num_frames,
                "share": sample.num_frames / (episodes.num_frames * len(shown.slots)),
                "num_episodes": sample.num_episodes,
                "frames": [describe(*member) for member in _members(sample)],
            }
            for sample in samples
        ],
    }


def _unit(report: dict[str, Any]) -> str:
    return str(report.get("unit", "frames"))


def _write(
    config: InspectConfig,
    samples: list[TokenSample],
    report: dict[str, Any],
    images: dict[tuple[int, int], Images],
) -> None:
    config.out_dir.mkdir(parents=True, exist_ok=True)
    _remove_earlier_grids(config.out_dir)
    write_config(config, config.out_dir / "config.json")
    encoder = report["encoder"] + (" (a stand-in, not DINOv2)" if report["is_stand_in"] else "")
    rows = []
    for sample, token in zip(samples, report["tokens"], strict=True):
        tiles = [_tile(frame, images) for frame in token["frames"]]
        line = f"{sample.num_frames} {_unit(report)} ({token['share']:.1%})"
        title = f"token {sample.token}: {line} in {sample.num_episodes} episodes; {encoder}"
        save_jpeg(draw_grid(title, tiles), config.out_dir / sample.file_name)
        rows.append((f"token {sample.token}", line, tiles))
    title = f"{report['dataset_name']}, {report['image_key']}, {encoder}"
    save_jpeg(draw_contact_sheet(title, rows), config.out_dir / SHEET_FILE)
    write_json(config.out_dir / FRAMES_FILE, report)


def _tile(frame: dict[str, Any], images: dict[tuple[int, int], Images]) -> Tile:
    image, small = images[frame["frame"], frame.get("vector", 0)]
    caption = f"episode {frame['episode_index']}, frame {frame['frame_in_episode']}"
    if "vector" in frame:
        place = SlotPlace(frame["image_key"], frame.get("row"), frame.get("column"))
        caption += f", {place.name}"
    return Tile(image, caption, frame["task"], small)


def _remove_earlier_grids(out_dir: Path) -> None:
    """Remove the grids of an earlier run, which its own list names."""
    earlier = out_dir / FRAMES_FILE
    if not earlier.exists():
        return
    try:
        names = [
            str(token["file"])
            for token in json.loads(earlier.read_text(encoding="utf-8"))["tokens"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    for name in names:
        if GRID_NAME.fullmatch(name):  # nothing else is removed, whatever the list says
            (out_dir / name).unlink(missing_ok=True)


def main() -> None:
    """Run the stage from the command line."""
    run_cli(InspectConfig, run)


if __name__ == "__main__":
    main()
