"""Finding a LeRobot dataset: in a named folder, in HF_LEROBOT_HOME, or on the hub.

Of a hub's dataset the disk gets a copy of one commit, each part fetched when a stage needs it. The
copy keeps the hub's list of files beside them, so that a whole copy is known without the hub.
"""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

from world_modality.source.conversion import convert, is_convertible
from world_modality.source.lerobot_format import (
    CONVERTED_FORMAT,
    INFO_PATH,
    lerobot_home,
    local_dataset_folder,
    read_info,
    read_json,
    require_format_v3,
)
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.atomic import write_json
from world_modality.system.errors import InvalidInputError, MissingFileError, UserError
from world_modality.system.hub import ask_hub, commit_of, file_sizes
from world_modality.system.network import hub_endpoint, through_proxy

RECORD_PATH = Path(".cache") / "hub_copy.json"
# What the hub's client notes beside a file that it has fetched; the first line is the commit.
CLIENT_RECORD_PATH = Path(".cache") / "huggingface" / "download" / "meta" / "info.json.metadata"
PARTS = ("meta/", "data/", "videos/")
Answer = TypeVar("Answer")


def open_dataset(
    name: str,
    *,
    dataset_root: Path | None = None,
    revision: str | None = None,
    image_keys: Sequence[str] = (),
    needs_images: bool = False,
    convert_older: bool = False,
) -> LeRobotSource:
    """Find a dataset and read its metadata; of a hub's, fetch what is not there yet.

    Args:
        name: repository id, or the name given to a local dataset.
        dataset_root: a local dataset's folder.
        revision: hub revision to pin.
        image_keys: cameras; they have to exist even where their images are not needed.
        needs_images: fetch the cameras' videos; no `image_keys` stand for the only camera.
        convert_older: read a dataset of format v2.1 from its conversion, made beside it where it is
            not there yet; of a hub's, all files are fetched for it.

    Raises:
        MissingFileError: no such folder, and no hub that has it.
        MissingKeyError: no such camera, said before anything large is fetched.
        InvalidInputError: not of format v3, without frames, damaged, or of another revision.
    """
    root = dataset_root or local_dataset_folder(name)
    copy = HubCopy.open(name, root, revision, convert_older) if dataset_root is None else None
    if dataset_root is not None and revision is not None:
        raise InvalidInputError("--revision pins a hub dataset; leave it out with --dataset_root")
    if copy is not None:
        copy.fetch("meta/")
    elif not (root / INFO_PATH).exists():
        raise MissingFileError(
            f"no LeRobot dataset in --dataset_root {root}: expected {root / INFO_PATH}"
        )
    if convert_older and is_convertible(root):
        if copy is not None:
            for part in PARTS:
                copy.fetch(part)
        root, copy = convert(root), None
    source = LeRobotSource.at(root, name, revision)
    parts = ["data/"]
    if needs_images or image_keys:
        for camera in source.cameras(image_keys):
            if needs_images and source.features[camera]["dtype"] == "video":
                parts.append(f"videos/{camera}/")
    if copy is not None:
        for part in parts:
            copy.fetch(part)
    if not source.data_files:
        raise InvalidInputError(f"dataset {name} at {root} is empty: it has no data/*/*.parquet")
    return source


@dataclass(frozen=True)
class HubCopy:
    """The copy of one commit.

    Attributes:
        name: repository id.
        folder: of the copy.
        revision: branch, tag or commit that was asked for.
        commit: what that was then.
        sizes: bytes of each of the commit's files, by path.
    """

    name: str
    folder: Path
    revision: str
    commit: str
    sizes: dict[str, int] = field(repr=False)

    @classmethod
    def open(
        cls, name: str, folder: Path, revision: str | None, takes_older: bool = False
    ) -> "HubCopy | None":
        """Find out what the copy in a folder has to hold; nothing large is fetched.

        Without a `revision` an existing copy stays what it is, and a new one is of the latest
        revision of format v3; `takes_older` says that v2.1 will do where the hub has no other.

        Returns:
            None where the folder holds a dataset that is no copy of the hub's, or a copy whose
            list of files the hub does not give now.

        Raises:
            MissingFileError: the hub does not answer, or lacks the dataset or the revision.
            InvalidInputError: it is of another format, or the folder holds another revision.
        """
        if (folder / RECORD_PATH).exists():
            copy = cls._recorded(name, folder)
        elif not (folder / INFO_PATH).exists():
            return cls._new(name, folder, revision, takes_older)
        else:
            client_record = folder / CLIENT_RECORD_PATH
            if not client_record.exists():
                if revision is None:
                    return None
                raise InvalidInputError(
                    f"{folder} holds a dataset of unknown revision, --revision asks for "
                    f"{revision}: leave --revision out, or move that folder away"
                )
            commit = client_record.read_text(encoding="utf-8").split("\n")[0]
            try:
                copy = cls(name, folder, commit, commit, _sizes(name, commit))
            except MissingFileError as error:
                if revision not in (None, commit):
                    raise
                print(f"note: whether {folder} is a whole copy is not known: {error}")
                return None
            copy._write()
        if revision not in (None, copy.revision, copy.commit):
            asked = _commit(name, str(revision))
            if asked != copy.commit:
                raise InvalidInputError(
                    f"{folder} is a copy of commit {copy.commit}, --revision {revision} is "
                    f"{asked}: leave --revision out, move that folder away, or set HF_LEROBOT_HOME"
                )
        return copy

    @classmethod
    def _recorded(cls, name: str, folder: Path) -> "HubCopy":
        path = folder / RECORD_PATH
        content = read_json(path)
        try:
            return cls(name, folder, content["revision"], content["commit"], content["sizes"])
        except KeyError as error:
            raise InvalidInputError(f"{path} lacks {error}; delete it") from error

    @classmethod
    def _new(cls, name: str, folder: Path, revision: str | None, takes_older: bool) -> "HubCopy":
        versions = [] if revision is not None else _versions(name)
        fitting = [version for version in versions if version.startswith("v3.")]
        if not fitting and takes_older and CONVERTED_FORMAT in versions:
            fitting = [CONVERTED_FORMAT]
        asked = revision or (fitting[-1] if fitting else "main")
        commit = _commit(name, asked)
        copy = cls(name, folder, asked, commit, _sizes(name, commit))
        where = f"{INFO_PATH} of {name} on the hub ({asked})"
        if str(INFO_PATH) not in copy.sizes:
            if versions:
                require_format_v3(versions[-1], f"{name} on the hub", name, folder)
            raise InvalidInputError(f"{name} on the hub is no LeRobot dataset: no {where}")
        # Not in the folder: LeRobot's converter takes what lies there for the whole dataset.
        with tempfile.TemporaryDirectory() as temporary:
            fetched = {"repo_type": "dataset", "revision": commit, "local_dir": temporary}
            path = _asked(name, lambda hub: hub.hf_hub_download(name, str(INFO_PATH), **fetched))
            if not (takes_older and is_convertible(Path(temporary))):
                read_info(Path(path), name, folder, where)
        copy._write()
        return copy

    def _write(self) -> None:
        content = {"revision": self.revision, "commit": self.commit, "sizes": self.sizes}
        write_json(self.folder / RECORD_PATH, content)

    def fetch(self, prefix: str) -> None:
        """Fetch those files under a prefix that are not there yet.

        Raises:
            MissingFileError: the hub does not give one.
            InvalidInputError: a file has another size than on the hub.
        """
        wanted = {path: size for path, size in self.sizes.items() if path.startswith(prefix)}
        absent = [path for path in wanted if not (self.folder / path).exists()]
        if absent:
            wanted_files = {
                "repo_type": "dataset",
                "revision": self.commit,
                "local_dir": self.folder,
                "allow_patterns": [escape(path) for path in absent],
            }
            _asked(self.name, lambda hub: hub.snapshot_download(self.name, **wanted_files))
        for path, size in wanted.items():
            file = self.folder / path
            if not file.exists():
                raise MissingFileError(
                    f"{file} is missing, and the hub{through_proxy(hub_endpoint())} does not "
                    "answer; the same command fetches what is missing when it does"
                )
            if file.stat().st_size != size:
                raise InvalidInputError(
                    f"{file} has {file.stat().st_size} bytes, on the hub {size}: damaged or "
                    "changed; delete it to fetch it again, or keep your own version of the "
                    "dataset in another folder (--dataset_root)"
                )


def _versions(name: str) -> list[str]:
    """Return the format versions that the hub has the dataset in, oldest first."""
    refs = _asked(name, lambda hub: hub.HfApi().list_repo_refs(name, repo_type="dataset"))
    names = {ref.name for ref in [*refs.tags, *refs.branches]}
    versions = [name for name in names if re.fullmatch(r"v\d+\.\d+", name)]
    return sorted(versions, key=lambda name: [int(part) for part in name[1:].split(".")])


def _commit(name: str, revision: str) -> str:
    """Return the commit of a branch or tag, or the whole of an abbreviated one."""
    return commit_of(name, "dataset", revision, _refusal(name))


def _sizes(name: str, commit: str) -> dict[str, int]:
    """Return the bytes of each of a dataset's files of a commit, by path."""
    sizes = file_sizes(name, "dataset", commit, _refusal(name))
    return {path: size for path, size in sizes.items() if path.startswith(PARTS)}


def _asked(name: str, request: Callable[[Any], Answer]) -> Answer:
    """Ask the hub for a dataset.

    Raises:
        MissingFileError: it does not answer, or lacks what was asked for.
        InvalidInputError: the environment names a proxy that cannot be used.
    """
    return ask_hub(request, _refusal(name))


def _refusal(name: str) -> Callable[[str], UserError]:
    return lambda said: MissingFileError(
        f"no dataset {name} in {lerobot_home()} that is whole, and {said}; name a local folder "
        "with --dataset_root or set HF_LEROBOT_HOME; a download that broke off goes on with the "
        "same command"
    )
