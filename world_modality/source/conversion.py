"""A dataset of LeRobot's format v2.1, converted to v3 by LeRobot's own converter.

The converter works in place: it renames the dataset, and leaves half of a new one where it is
interrupted. Here it works on a link to the dataset, in a hidden folder; what it has made gets its
name beside the dataset when it is whole, and the dataset itself stays as it is.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from glob import escape
from pathlib import Path

from world_modality.source.lerobot_format import (
    CONVERTED_FORMAT,
    INFO_PATH,
    converted_folder,
    read_info,
    read_json,
)
from world_modality.system.atomic import sync_file, write_json
from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock

RECORD_PATH = Path("meta") / "conversion.json"
EPISODES_PATH = Path("meta") / "episodes.jsonl"
# Of lerobot 0.4 and of later releases; --root is the folder around the dataset for the first, and
# the dataset's own for the second.
CONVERTERS = {
    "lerobot.datasets.v30.convert_dataset_v21_to_v30": "around",
    "lerobot.scripts.convert_dataset_v21_to_v30": "own",
}
# As long as a conversion may take that another process of the same job does.
WAIT_S = 24 * 3600.0


def is_convertible(folder: Path) -> bool:
    """Say whether a folder holds a dataset of format v2.1."""
    path = folder / INFO_PATH
    return path.exists() and read_json(path).get("codebase_version") == CONVERTED_FORMAT


def convert(folder: Path) -> Path:
    """Convert a dataset into the folder beside it, or find the conversion there.

    Raises:
        InvalidInputError: LeRobot or its converter are not installed, or the converter refuses the
            dataset; the folder beside it is of another dataset, or of another state of this one.
    """
    target = converted_folder(folder)
    with OutputLock(target.parent, "--dataset_root", name=f".{target.name}.lock", wait_s=WAIT_S):
        identity = _identity(folder)
        if target.exists():
            _require_conversion_of(folder, target, identity)
            return target
        _require_counted_episodes(folder)
        prefix = f".{target.name}.partial-"
        for interrupted in target.parent.glob(f"{escape(prefix)}*"):
            shutil.rmtree(interrupted)
        # Of another name each time: a converter that outlives its killed stage still writes.
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        print(f"converting {folder} to {target} with LeRobot's converter …")
        made = _run_converter(folder, work)
        read_info(made / INFO_PATH, folder.name, made)
        write_json(made / RECORD_PATH, {"from": CONVERTED_FORMAT, "content_sha256": identity})
        for path in made.rglob("*"):
            sync_file(path)
        made.rename(target)
        sync_file(target.parent)
        shutil.rmtree(work)
    return target


def _run_converter(folder: Path, work: Path) -> Path:
    """Convert a link to the dataset; return the folder of the result."""
    module, root_is = _converter()
    link = work / "dataset"
    link.symlink_to(Path(os.path.abspath(folder)), target_is_directory=True)
    root = link if root_is == "own" else work
    command = [sys.executable, "-m", module, f"--repo-id={link.name}", f"--root={root}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "tables")}
    log = work / "converter.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, "--push-to-hub=false"], stdout=output, stderr=output, env=environment
        )
    if done.returncode != 0 or link.is_symlink():
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        raise InvalidInputError(
            f"LeRobot's converter did not convert {folder} (exit code {done.returncode}: "
            f"{reason[:300]}); {folder} is as it was, and all that the converter said is in {log}"
        )
    return link


def _converter() -> tuple[str, str]:
    found = importlib.util.find_spec("lerobot")  # which does not import it
    for module, root_is in CONVERTERS.items():
        parts = module.split(".")[1:]
        for location in (found and found.submodule_search_locations) or ():
            if Path(location, *parts).with_suffix(".py").exists():
                return module, root_is
    if found is None:
        raise InvalidInputError(
            "--convert runs LeRobot's converter, but lerobot is not installed here: pip install "
            "lerobot, or convert the dataset on another machine"
        )
    raise InvalidInputError(
        f"lerobot {importlib.metadata.version('lerobot')} has none of the converters "
        f"{', '.join(CONVERTERS)}; install a release that has one, such as 0.4.4 or 0.6.1"
    )


def _require_counted_episodes(folder: Path) -> None:
    """Check that the episodes are numbered as the converter needs them: 0 to E-1."""
    path = folder / EPISODES_PATH
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        ids = sorted(row["episode_index"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return  # the converter says what is wrong
    if ids != list(range(len(ids))):
        first = next(number for number, found in enumerate(ids) if found != number)
        raise InvalidInputError(
            f"{path} numbers {len(ids)} episodes from {ids[0]} to {ids[-1]} with a gap (no episode "
            f"{first}), and LeRobot's converter takes only datasets that are numbered without one: "
            "fetch all episodes, convert the whole dataset, and take the episodes away from the "
            "result (lerobot-edit-dataset --operation.type=delete_episodes)"
        )


def _identity(folder: Path) -> str:
    """Return a hash of what is converted: its metadata, and names and sizes of its files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("meta/*.json*")):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    for path in sorted([*folder.glob("data/*/*.parquet"), *folder.glob("videos/*/*/*.mp4")]):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _require_conversion_of(folder: Path, target: Path, identity: str) -> None:
    record = target / RECORD_PATH
    if not record.exists():
        raise InvalidInputError(
            f"--convert writes to {target}, but that folder is there and was not made by it (no "
            f"{RECORD_PATH}): name it with --dataset_root if it is the dataset, or move it away"
        )
    if read_json(record).get("content_sha256") != identity:
        raise InvalidInputError(
            f"{target} was converted from another state of {folder}; delete it, and the same "
            "command converts the dataset again"
        )
