"""A hub dataset's copy on the disk: of one commit, each part fetched when a stage needs it.

The copy keeps the hub's list of files beside them, so that a whole copy is known without the hub.
"""

import errno
import importlib.metadata
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

from world_modality.source.lerobot_format import (
    INFO_PATH,
    lerobot_home,
    read_info,
    read_json,
    require_format_v3,
)
from world_modality.system.atomic import write_json
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.system.network import (
    hub_endpoint,
    require_proxy_support,
    through_proxy,
    without_credentials,
)

RECORD_PATH = Path(".cache") / "hub_copy.json"
# What the hub's client notes beside a file that it has fetched; the first line is the commit.
CLIENT_RECORD_PATH = Path(".cache") / "huggingface" / "download" / "meta" / "info.json.metadata"
PARTS = ("meta/", "data/", "videos/")
# A full or read-only disk is no fault of the hub.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
Answer = TypeVar("Answer")


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
    def open(cls, name: str, folder: Path, revision: str | None) -> "HubCopy | None":
        """Find out what the copy has to hold; nothing large is fetched.

        Args:
            name: repository id.
            folder: where the copy lies, or will lie.
            revision: the hub's branch, tag or commit; None for what the copy is of, and for a new
                one the latest of format v3.

        Returns:
            None where the folder holds a dataset that is no copy of the hub's, or a copy whose
            list of files the hub does not give now.

        Raises:
            MissingFileError: the hub does not answer, or lacks the dataset or the revision.
            InvalidInputError: it is of another format, or the folder holds another revision.
        """
        record_path = folder / RECORD_PATH
        if record_path.exists():
            copy = cls._recorded(name, folder)
        elif not (folder / INFO_PATH).exists():
            return cls._new(name, folder, revision)
        else:
            client_record = folder / CLIENT_RECORD_PATH
            commit = (
                client_record.read_text(encoding="utf-8").split("\n")[0]
                if client_record.exists()
                else None
            )
            if commit is None and revision is None:
                return None
            if commit is None:
                raise InvalidInputError(
                    f"{folder} holds a dataset of unknown revision, --revision asks for "
                    f"{revision}: leave --revision out, or move that folder away"
                )
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
    def _new(cls, name: str, folder: Path, revision: str | None) -> "HubCopy":
        versions = [] if revision is not None else _versions(name)
        of_v3 = [version for version in versions if version.startswith("v3.")]
        asked = revision or (of_v3[-1] if of_v3 else "main")
        commit = _commit(name, asked)
        copy = cls(name, folder, asked, commit, _sizes(name, commit))
        where = f"{INFO_PATH} of {name} on the hub ({asked})"
        if str(INFO_PATH) not in copy.sizes:
            if versions:
                require_format_v3(versions[-1], f"{name} on the hub", name, folder)
            raise InvalidInputError(f"{name} on the hub is no LeRobot dataset: no {where}")
        # Not in the folder: LeRobot's converter takes what lies there for the whole dataset.
        with tempfile.TemporaryDirectory() as temporary:
            path = _asked(
                name,
                lambda hub: hub.hf_hub_download(
                    name,
                    str(INFO_PATH),
                    repo_type="dataset",
                    revision=commit,
                    local_dir=temporary,
                ),
            )
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
            _asked(
                self.name,
                lambda hub: hub.snapshot_download(
                    self.name,
                    repo_type="dataset",
                    revision=self.commit,
                    local_dir=self.folder,
                    allow_patterns=[escape(path) for path in absent],
                ),
            )
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
    found = [match for match in (re.fullmatch(r"v(\d+)\.(\d+)", name) for name in names) if match]
    return [match[0] for match in sorted(found, key=lambda m: (int(m[1]), int(m[2])))]


def _commit(name: str, revision: str) -> str:
    """Return the commit of a branch or tag, or the whole of an abbreviated one."""
    return str(_asked(name, lambda hub: hub.HfApi().dataset_info(name, revision=revision).sha))


def _sizes(name: str, commit: str) -> dict[str, int]:
    def listed(hub: Any) -> dict[str, int]:
        tree = hub.HfApi().list_repo_tree(
            name, recursive=True, revision=commit, repo_type="dataset"
        )
        files = [entry for entry in tree if hasattr(entry, "size")]
        return {file.path: file.size for file in files if file.path.startswith(PARTS)}

    return _asked(name, listed)


def _asked(name: str, request: Callable[[Any], Answer]) -> Answer:
    """Ask the hub through its client.

    Raises:
        MissingFileError: it does not answer, or lacks what was asked for.
        InvalidInputError: the environment names a proxy that cannot be used.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    is_first = importlib.metadata.version("huggingface_hub").startswith("0.")
    require_proxy_support(hub_endpoint(), "requests" if is_first else "httpx")
    failures: list[type[Exception]] = [OSError, HFValidationError, ImportError]
    with suppress(ImportError):  # the client of release 1 speaks through it
        import httpx

        failures.append(httpx.HTTPError)
    try:
        return request(huggingface_hub)
    except tuple(failures) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        reason = without_credentials(" ".join(str(error).split()))[:200]
        raise MissingFileError(
            f"no dataset {name} in {lerobot_home()} that is whole, and the hub"
            f"{through_proxy(hub_endpoint())} did not give it "
            f"({type(error).__name__}: {reason}); name a local folder with --dataset_root or set "
            "HF_LEROBOT_HOME; a download that broke off goes on with the same command"
        ) from error
