"""Names of remotes: checked before they reach a shell, masked before they reach a log."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ops.store.errors import OpsError

_NAMED = re.compile(r"[A-Za-z0-9_][\w.+@ -]*:")
_PARAMETER = r",[a-z0-9_]+(?:=(?:'[^']*'|[^,:'\"]*))?"
_INLINE = re.compile(rf":[a-z0-9]+(?P<parameters>(?:{_PARAMETER})*):")
# What a shell would read inside double quotes, and what no log can show.
_FORBIDDEN = re.compile(r'["$`\\\x00-\x1f\x7f]')
_MAX_LENGTH = 1024
_SECRET_WORDS = "token|secret|password|passwd|pass|api_?key|access_key(?:_id)?|private_key|code"
_SECRETS = [
    # JSON, as in rclone's configuration: "access_token":"…", also with escaped quotes.
    re.compile(rf'(?i)(\\?"\w*(?:{_SECRET_WORDS})\w*\\?"\s*:\s*\\?")[^"\\]*'),
    re.compile(rf"(?i)(\b\w*(?:{_SECRET_WORDS})\w*\s*[=:]\s*)[^\s,;&\"']+"),
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.+/=~-]+"),
    re.compile(r"(://)[^/\s@]+(?=@)"),
]
_CONFIG_FILE = re.compile(r"[^\s\"']*rclone\.conf\b")
MASK = "***"


@dataclass(frozen=True)
class RemoteName:
    """A place that rclone can write to.

    Attributes:
        text: as rclone takes it, for example `gdrive:runs/logs_c` or `:local:/mnt/disk/logs_c`.
        secrets: values of a connection string, which never reach a log.
    """

    text: str
    secrets: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.masked

    def __repr__(self) -> str:
        return f"RemoteName({self.masked!r})"

    @property
    def masked(self) -> str:
        """The name without what a connection string holds."""
        match = _INLINE.match(self.text)
        if match is None or not match["parameters"]:
            return self.text
        return self.text[: match.start("parameters")] + f",{MASK}" + self.text[match.end() - 1 :]

    def folder(self, name: str) -> str:
        """Return the rclone path of a folder inside."""
        return f"{self.text}{'' if self.text.endswith((':', '/')) else '/'}{name}"

    def scrub(self, message: str) -> str:
        """Take out of rclone's message whatever gives access: tokens, keys, the configuration."""
        message = message.replace(self.text, self.masked)
        for secret in self.secrets:
            message = message.replace(secret, MASK)
        for name, value in os.environ.items():
            if name.startswith("RCLONE_") and len(value) >= 4:
                message = message.replace(value, MASK)
        for pattern in _SECRETS:
            message = pattern.sub(rf"\g<1>{MASK}", message)
        return _CONFIG_FILE.sub(MASK, message)


def parse_remote(text: str) -> RemoteName:
    """Check a remote's name.

    Raises:
        OpsError: it names no remote, leaves its folder (`..`), or holds characters that a shell
            would read. The message never repeats a connection string.
    """
    shown = "the remote's name" if "," in text else repr(text)
    if len(text) > _MAX_LENGTH or _FORBIDDEN.search(text):
        raise OpsError(
            f'{shown} has more than {_MAX_LENGTH} characters, or one of " $ ` \\ or a control '
            "character; put such settings into `rclone config` and name the remote, as in "
            "gdrive:runs/logs_c"
        )
    inline = _INLINE.match(text)
    start = inline or _NAMED.match(text)
    if start is None:
        hint = f"; for a folder write :local:{os.path.abspath(text)}" if ":" not in text else ""
        raise OpsError(f"{shown} names no remote, which looks like gdrive:runs/logs_c{hint}")
    path = text[start.end() :]
    if ".." in path.split("/"):
        raise OpsError(f"{shown} has a .. in its path; write the path out")
    prefix = text[: start.end()]
    if inline and prefix.startswith((":local:", ":local,")):
        if not path:
            raise OpsError(":local: needs a folder, as in :local:/mnt/disk/logs_c")
        path = str(Path(path).absolute())  # rclone may run in another working directory
    secrets: tuple[str, ...] = ()
    if inline:
        values = re.findall(r"=('[^']*'|[^,:'\"]*)", inline["parameters"])
        secrets = tuple(v.strip("'") for v in values if len(v.strip("'")) >= 4)
    return RemoteName(prefix + path, secrets)
