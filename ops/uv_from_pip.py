"""Print shell exports that give uv the package sources pip is configured with.

uv does not read pip's configuration, so on a machine behind a mirror it would go to the public
registry. Run with the interpreter whose pip is to be followed:
`eval "$(python ops/uv_from_pip.py)"`. A variable that is set already wins.
"""

import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping

# Where several sections set one key, pip lets the later of these win.
SECTIONS = ("global", "install", ":env:")
# pip's key, uv's variables for it, and what separates several values there.
TRANSLATIONS = (
    ("index-url", ("UV_DEFAULT_INDEX",), " "),
    ("extra-index-url", ("UV_INDEX",), " "),
    ("find-links", ("UV_FIND_LINKS",), ","),
    ("no-index", ("UV_NO_INDEX",), " "),
    ("trusted-host", ("UV_INSECURE_HOST",), " "),
    ("cert", ("SSL_CERT_FILE",), " "),
    ("client-cert", ("SSL_CLIENT_CERT",), " "),
    ("proxy", ("HTTPS_PROXY", "HTTP_PROXY"), " "),
    ("timeout", ("UV_HTTP_TIMEOUT",), " "),
    ("default-timeout", ("UV_HTTP_TIMEOUT",), " "),
)


def read_pip_settings(listing: str) -> dict[str, str]:
    """Parse `pip config list`: lines of `section.key='value'`, the section possibly `:env:`."""
    settings: dict[str, str] = {}
    lines = [line for line in listing.splitlines() if "=" in line]
    for section in SECTIONS:
        for line in lines:
            name, _, quoted = line.partition("=")
            if name.startswith(section + "."):
                settings[name.removeprefix(section + ".")] = str(ast.literal_eval(quoted))
    return settings


def uv_variables(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Translate pip's settings into uv's variables, leaving out those that `environment` sets."""
    variables: dict[str, str] = {}
    for key, names, separator in TRANSLATIONS:
        values = settings.get(key, "").split()
        if values:
            for name in names:
                variables.setdefault(name, separator.join(values))
    if "UV_INDEX" in variables:
        # pip takes the best version over all its sources; uv by itself stops at the first source
        # that has the name.
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    older_names = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}
    return {
        name: value
        for name, value in variables.items()
        if name not in environment and older_names.get(name, name) not in environment
    }


def main() -> None:
    """Print one `export` line per variable."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    for name, value in uv_variables(read_pip_settings(listed.stdout), os.environ).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
