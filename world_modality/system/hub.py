"""The hub, asked through its own client. What goes wrong is told in one line without the token.

An answer that is of no use is raised as what the caller says of it, so that each stage names its
own flag and remedy.
"""

import errno
import importlib.metadata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from world_modality.system.errors import UserError
from world_modality.system.network import (
    hub_endpoint,
    require_proxy_support,
    through_proxy,
    without_credentials,
)

RepoType = Literal["dataset", "model"]
# A full or read-only disk is no fault of the hub.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
LOG_IN = "log in with hf auth login, or set HF_TOKEN, if the repository is private or yours"
SHOWN_CHARACTERS = 200
Answer = TypeVar("Answer")


def ask_hub(
    request: Callable[[Any], Answer],
    refusal: Callable[[str], UserError],
    verb: Literal["give", "take"] = "give",
) -> Answer:
    """Ask the hub through its client.

    Args:
        request: is given the module `huggingface_hub`.
        refusal: builds the error from what is said of the failure, "the hub did not give it (…)".
        verb: what the hub did not do.

    Raises:
        UserError: that of `refusal`, where the hub does not answer or does not agree.
        InvalidInputError: the environment names a proxy that cannot be used.
    """
    import huggingface_hub

    is_first = importlib.metadata.version("huggingface_hub").startswith("0.")
    require_proxy_support(hub_endpoint(), "requests" if is_first else "httpx")
    # ValueError: an answer that is no JSON, such as a proxy's page.
    failures: tuple[type[Exception], ...] = (*_client_failures(), ValueError)
    try:
        return request(huggingface_hub)
    except UserError:
        raise
    except failures as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        hub = f"the hub{through_proxy(hub_endpoint())}"
        raise refusal(f"{hub} did not {verb} it ({_reason(error)})") from error


def _client_failures() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises where the hub does not answer or does not agree."""
    from huggingface_hub.errors import HFValidationError

    failures: list[type[Exception]] = [OSError, HFValidationError, ImportError]
    with suppress(ImportError):  # the client of release 1 speaks through it
        import httpx

        failures.append(httpx.HTTPError)
    return tuple(failures)


def _reason(error: Exception) -> str:
    from huggingface_hub import get_token

    text = without_credentials(" ".join(str(error).split()))
    # A server, or a proxy on the way, may repeat what it was sent.
    if token := get_token():
        text = text.replace(token, "…")
    reason = f"{type(error).__name__}: {text[:SHOWN_CHARACTERS]}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"{reason}; {LOG_IN}" if status in (401, 403, 404) else reason


def commit_of(
    repo_id: str, repo_type: RepoType, revision: str | None, refusal: Callable[[str], UserError]
) -> str:
    """Return the commit of a branch or tag, or the whole of an abbreviated one; errors as above."""
    asked = {"repo_type": repo_type, "revision": revision}
    return str(ask_hub(lambda hub: hub.HfApi().repo_info(repo_id, **asked).sha, refusal))


def file_sizes(
    repo_id: str, repo_type: RepoType, commit: str, refusal: Callable[[str], UserError]
) -> dict[str, int]:
    """Return the bytes of each file of a commit, by path; errors as above."""
    listed = {"repo_type": repo_type, "revision": commit, "recursive": True}
    tree = ask_hub(lambda hub: list(hub.HfApi().list_repo_tree(repo_id, **listed)), refusal)
    # Folders of the tree have no size.
    return {entry.path: entry.size for entry in tree if hasattr(entry, "size")}


@dataclass(frozen=True)
class Upload:
    """What became of an upload.

    Attributes:
        address: of the repository, to open in a browser.
        commit: the revision that holds it.
    """

    address: str
    commit: str


def upload(
    repo_id: str,
    repo_type: RepoType,
    files: Sequence[tuple[str, Path | bytes]],
    message: str,
    refusal: Callable[[str], UserError],
    *,
    private: bool,
) -> Upload:
    """Upload files as one commit: all of them are there, or none.

    Args:
        repo_id: `user/name`; made where it is not there.
        repo_type: of the repository.
        files: the name that each has there, with its path or its content.
        message: of the commit.
        refusal: as that of `ask_hub`, whose errors are raised.
        private: make a new repository a private one.
    """

    def send(hub: Any) -> Upload:
        interface = hub.HfApi()
        made = interface.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files
        ]
        commit = interface.create_commit(
            made.repo_id, operations, commit_message=message, repo_type=repo_type
        )
        return Upload(str(made), str(commit.oid))

    return ask_hub(send, refusal, "take")
