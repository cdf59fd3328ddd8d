"""Show which frames share a world token: one grid a token, and all of them on one sheet."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from world_modality.cache.contract import Cache, require_arrays
from world_modality.evaluation.token_grid import (
    Tile,
    draw_contact_sheet,
    draw_grid,
    save_jpeg,
    thumbnail,
)
from world_modality.source.episodes import Episodes
from world_modality.source.frame_decoding import frame_blocks
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError
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
    """Folder of a local dataset; otherwise HF_LEROBOT_HOME, then the hub."""
    revision: str | None = None
    """Hub revision of the dataset."""
    cache_dir: Path = Path("cache")
    """Where the stages keep their arrays."""
    split: str = "train"
    """Prefix of the cache's files."""
    image_key: str | None = None
    """Camera to show; the one that was embedded where left out."""
    out_dir: Path = Path("token_inspection")
    """Receives token_<id>.jpg, contact_sheet.jpg and token_frames.json."""
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
    """The frames drawn for one token, and how many frames have it in how many episodes."""

    token: int
    num_frames: int
    num_episodes: int
    frames: Int[np.ndarray, " N"]

    @property
    def file_name(self) -> str:
        """The grid's file."""
        return f"token_{self.token}.jpg"


def run(config: InspectConfig) -> list[TokenSample]:
    """Draw the grids, the contact sheet and the list of frames."""
    if config.samples_per_token < 1:
        raise InvalidInputError("--samples_per_token must be at least 1")
    cache = Cache(config.cache_dir, config.dataset_name, config.split)
    arrays = require_arrays(cache, ("world_tokens", "episode_index", "task_index"))
    world_tokens = np.asarray(arrays["world_tokens"])
    episodes = Episodes.from_frames(
        arrays["episode_index"], arrays["task_index"], cache.episode_ids
    )
    chosen = choose_tokens(world_tokens, cache.num_tokens, config.num_tokens, config.tokens)
    rng = np.random.default_rng(config.seed)
    samples = [
        sample_frames(token, world_tokens, episodes.of_frame, config.samples_per_token, rng)
        for token in chosen
    ]
    source = _source_of(cache, config)
    image_key = source.camera(config.image_key or cache.manifest["dataset"]["image_key"])
    with OutputLock(config.out_dir, "--out_dir"):
        thumbnails = _thumbnails(source, image_key, samples)
        report = _report(cache, image_key, samples, episodes, arrays["task_index"])
        _write(config, samples, report, thumbnails)
    print(f"{len(samples)} grids, {SHEET_FILE} and {FRAMES_FILE} are in {config.out_dir}")
    for token in report["tokens"]:
        print(
            f"  token {token['token']:>5}: {token['num_frames']} frames ({token['share']:.1%}) "
            f"in {token['num_episodes']} episodes"
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
    if num_tokens < 1:
        raise InvalidInputError("--num_tokens must be at least 1")
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
    """Open the dataset that the cache was made from.

    Raises:
        InvalidInputError: the dataset found is another one.
    """
    recorded = cache.manifest["dataset"]
    camera = config.image_key or recorded["image_key"]
    # What identifies the dataset covers the pictures that the tokens were made from.
    source = open_dataset(
        config.dataset_name,
        dataset_root=config.dataset_root,
        revision=config.revision,
        image_keys=tuple(dict.fromkeys((camera, *cache.image_keys))),
        needs_images=True,
    )
    found = source.describe(cache.image_keys)
    for entry in ("num_frames", "content_sha256"):
        if found[entry] != recorded[entry]:
            raise InvalidInputError(
                f"the dataset at {source.root} has {entry} {found[entry]}, but the cache was made "
                f"from one with {recorded[entry]}; {cache.mend()}"
            )
    if camera != recorded["image_key"]:
        print(f"note: the tokens were made from {recorded['image_key']}, shown is {camera}")
    return source


def _thumbnails(
    source: LeRobotSource, image_key: str, samples: list[TokenSample]
) -> dict[int, np.ndarray]:
    """Decode each frame once and keep it small."""
    frames = np.unique(np.concatenate([sample.frames for sample in samples]))
    images: list[np.ndarray] = []
    for block in frame_blocks(source, image_key, frames, DECODE_BATCH):
        images += [thumbnail(image) for image in block]
    return dict(zip(frames.tolist(), images, strict=True))


def _report(
    cache: Cache,
    image_key: str,
    samples: list[TokenSample],
    episodes: Episodes,
    task_index: Int[np.ndarray, " N"],
) -> dict[str, Any]:
    """Return what the JSON says: which frames were drawn, and whose they are."""
    tasks = cache.manifest["dataset"]["tasks"]
    position = episodes.of_frame

    def describe(frame: int) -> dict[str, Any]:
        episode = int(position[frame])
        return {
            "frame": frame,
            "episode_index": int(episodes.ids[episode]),
            "frame_in_episode": frame - int(episodes.starts[episode]),
            "task": tasks[str(int(task_index[frame]))],
        }

    encoder = cache.manifest["encoder"]
    return {
        "dataset_name": cache.dataset_name,
        "image_key": image_key,
        "encoder": encoder["name"],
        "is_stand_in": encoder["is_stand_in"],
        "note": encoder["note"],
        "tokens": [
            {
                "token": sample.token,
                "file": sample.file_name,
                "num_frames": sample.num_frames,
                "share": sample.num_frames / episodes.num_frames,
                "num_episodes": sample.num_episodes,
                "frames": [describe(int(frame)) for frame in sample.frames],
            }
            for sample in samples
        ],
    }


def _write(
    config: InspectConfig,
    samples: list[TokenSample],
    report: dict[str, Any],
    thumbnails: dict[int, np.ndarray],
) -> None:
    config.out_dir.mkdir(parents=True, exist_ok=True)
    _remove_earlier_grids(config.out_dir)
    write_config(config, config.out_dir / "config.json")
    encoder = report["encoder"] + (" (a stand-in, not DINOv2)" if report["is_stand_in"] else "")
    rows = []
    for sample, token in zip(samples, report["tokens"], strict=True):
        tiles = [
            Tile(
                thumbnails[frame["frame"]],
                f"episode {frame['episode_index']}, frame {frame['frame_in_episode']}",
                frame["task"],
            )
            for frame in token["frames"]
        ]
        line = f"{sample.num_frames} frames ({token['share']:.1%})"
        title = f"token {sample.token}: {line} in {sample.num_episodes} episodes; {encoder}"
        save_jpeg(draw_grid(title, tiles), config.out_dir / sample.file_name)
        rows.append((f"token {sample.token}", line, tiles))
    title = f"{report['dataset_name']}, {report['image_key']}, {encoder}"
    save_jpeg(draw_contact_sheet(title, rows), config.out_dir / SHEET_FILE)
    write_json(config.out_dir / FRAMES_FILE, report)


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
