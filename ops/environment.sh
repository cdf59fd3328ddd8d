#!/usr/bin/env bash
# Make, show or remove the repository's virtual environment; the Makefile calls this.
#
#   ops/environment.sh create   make the environment unless a whole one is there
#   ops/environment.sh python   print the path of its interpreter
#   ops/environment.sh remove   remove it, and nothing else
#   ops/environment.sh lock     resolve requirements.txt into a lock file for each Python, installing nothing
#
# Variables:
#   PYTHON        interpreter to build on (default: the first of python3.11, python3.12, python3 that fits)
#   ENV_DIR       where the environment lies (default: in the user's cache, named after what it is made of)
#   KEEP_TORCH=1  keep the torch that PYTHON already has (ROCm, a cluster's CUDA) instead of installing one
#
# Messages go to stderr, so that $(make -s python) holds a path and nothing else.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
requirements="$repo/requirements.txt"
keep_torch_overrides="$repo/requirements-keep-torch.txt"
lock_versions=(3.11 3.12)
keep_torch="${KEEP_TORCH:-}"
[[ "$keep_torch" == 0 ]] && keep_torch=""
# A user-wide `pip install --user` setting makes every install into a virtual environment fail.
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONHOME

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# pyenv leaves shims for versions that do not run, so a name on PATH proves nothing.
python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

choose_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        case "$(python_version "$PYTHON")" in
            3.11 | 3.12) echo "$PYTHON"; return ;;
            "") die "PYTHON=$PYTHON does not run; name a Python 3.11 or 3.12, for example PYTHON=/usr/bin/python3.11" ;;
            *) die "PYTHON=$PYTHON is Python $(python_version "$PYTHON"); Python 3.11 or 3.12 is needed" ;;
        esac
    fi
    for candidate in python3.11 python3.12 python3; do
        case "$(python_version "$candidate")" in
            3.11 | 3.12) echo "$candidate"; return ;;
        esac
    done
    die "none of python3.11, python3.12, python3 runs and is Python 3.11 or 3.12; install one" \
        "(Debian, Ubuntu: apt-get install python3.11 python3.11-venv) or name one: make env PYTHON=/path/to/python3.11"
}

# "<version> <file>" of the torch that an interpreter sees; nothing when it has none.
describe_torch() { "$1" -c 'import torch; print(torch.__version__, torch.__file__)' 2>/dev/null || true; }

describe_python() {
    "$1" -c 'import platform, sys; print(sys.version, sys.base_prefix, platform.machine())'
}

python="$(choose_python)"
kept_torch=""
if [[ -n "$keep_torch" ]]; then
    kept_torch="$(describe_torch "$python")"
    [[ -n "$kept_torch" ]] || die "KEEP_TORCH=1, but 'import torch' fails in $python: there is no torch to keep." \
        "Name the interpreter that has it (make env KEEP_TORCH=1 PYTHON=...), or leave KEEP_TORCH out to install one"
fi

lock_file() { echo "$repo/requirements-$1.lock"; }

lock_header() {
    echo "# Made by \`make lock\` for Linux on x86_64 from the requirements.txt with SHA-256" \
        "$(sha256sum < "$requirements" | cut -c 1-64)"
}

# Exact versions where they were resolved for this platform and this torch, else ranges.
chosen="$requirements"
stale_lock=""
if [[ -z "$keep_torch" && "$(uname -sm)" == "Linux x86_64" ]]; then
    chosen="$(lock_file "$(python_version "$python")")"
    if [[ "$(head -n 1 "$chosen" 2>/dev/null)" != "$(lock_header)" ]]; then
        stale_lock="$chosen"
        chosen="$requirements"
    fi
fi

fingerprint="$({
    describe_python "$python"
    cat "$chosen"
    if [[ -n "$keep_torch" ]]; then
        echo "$kept_torch"
        cat "$keep_torch_overrides"
    fi
} | sha256sum | cut -c 1-12)"
store="${XDG_CACHE_HOME:-$HOME/.cache}/world-modality-vla"
env_dir="${ENV_DIR:-$store/env-$fingerprint}"
[[ "$env_dir" == /* ]] || env_dir="$repo/$env_dir"
env_dir="${env_dir%/}"
env_python="$env_dir/bin/python"
# The first file says that the folder is ours to remove, the second, written last, that the installation is whole.
owned_mark="$env_dir/.world-modality-vla"
complete_mark="$env_dir/.complete"

is_complete() { [[ -x "$env_python" && "$(cat "$complete_mark" 2>/dev/null)" == "$fingerprint" ]]; }

# Held until this process and its children end: an installer that outlives a killed make still holds it.
lock() {
    command -v flock > /dev/null || die "flock is missing; install util-linux"
    mkdir -p "$(dirname "$env_dir")"
    exec 9> "$(dirname "$env_dir")/.$(basename "$env_dir").lock"
    if ! flock --nonblock 9; then
        say "waiting for another make that is at work on $env_dir"
        flock 9
    fi
}

remove_environment() {
    [[ -e "$env_dir" ]] || return 0
    if [[ ! -e "$owned_mark" && -n "$(ls -A "$env_dir")" ]]; then
        die "$env_dir was not made by this Makefile; it is left alone. Choose another ENV_DIR"
    fi
    rm -rf -- "$env_dir"
}

make_virtual_environment() {
    mkdir -p "$env_dir"
    touch "$owned_mark"
    local options=()
    [[ -z "$keep_torch" ]] || options+=(--system-site-packages)
    "$python" -m venv ${options[@]+"${options[@]}"} "$env_dir" >&2 || die "$python -m venv failed; where Python comes" \
        "from the distribution, install its venv package (Debian, Ubuntu: apt-get install python3-venv)"
    [[ -z "$keep_torch" ]] || show_parent_packages
}

# --system-site-packages shows the base installation; when PYTHON is itself a virtual environment, torch is not there.
show_parent_packages() {
    "$python" - "$env_dir" <<'PYTHON'
import sys, sysconfig
from pathlib import Path

if sys.prefix != sys.base_prefix:
    paths = sysconfig.get_paths()
    parents = dict.fromkeys([paths["purelib"], paths["platlib"]])
    target = sysconfig.get_path("purelib", vars={"base": sys.argv[1], "platbase": sys.argv[1]})
    Path(target, "_kept_torch.pth").write_text("\n".join(parents) + "\n")
PYTHON
}

# Sets `uv` to the program, installed into this virtual environment where there is none, or to nothing.
find_uv() {
    uv="$(command -v uv || true)"
    if [[ -z "$uv" ]] && "$1/bin/python" -m pip install --quiet uv >&2; then
        uv="$1/bin/uv"
    fi
    eval "$("$1/bin/python" "$repo/ops/uv_from_pip.py")"
}

install_requirements() {
    local uv
    find_uv "$env_dir"
    if [[ -n "$uv" ]]; then
        local options=(--python "$env_python" --requirement "$chosen")
        [[ -z "$keep_torch" ]] || options+=(--override "$keep_torch_overrides")
        "$uv" pip install "${options[@]}" >&2
    elif [[ -n "$keep_torch" ]]; then
        die "KEEP_TORCH=1 needs uv, which pip could not install: pip alone cannot leave torch out of a resolution"
    else
        say "uv cannot be had; installing with pip, which takes longer"
        "$env_python" -m pip install --requirement "$chosen" >&2
    fi
}

explain_failed_install() {
    command -v cc > /dev/null || say "note: there is no C compiler, and evdev (asked for by lerobot) is built from" \
        "source. Debian, Ubuntu: apt-get install gcc python3-dev; Fedora, RHEL: dnf install gcc python3-devel"
    die "the requirements could not be installed; see above. The next make env starts afresh"
}

check_kept_torch() {
    local now intruders
    now="$(describe_torch "$env_python")"
    [[ "$now" == "$kept_torch" ]] || die "torch was to be kept as '$kept_torch' but is now '${now:-not importable}'"
    intruders="$(cd "$env_dir"/lib/python3.*/site-packages && ls -d torch-*.dist-info torchvision-*.dist-info \
        torchaudio-*.dist-info nvidia_*.dist-info triton-*.dist-info 2>/dev/null || true)"
    [[ -z "$intruders" ]] || die "KEEP_TORCH=1, but these were installed: $intruders"
    say "kept torch $kept_torch"
}

create() {
    is_complete && return
    lock
    is_complete && return # made while this process waited
    remove_environment
    say "making $env_dir with $("$python" --version 2>&1) ($python)"
    [[ -z "$stale_lock" ]] || say "note: $stale_lock was not made from this requirements.txt, whose ranges are" \
        "resolved now instead; make lock renews it"
    local started=$SECONDS
    make_virtual_environment
    install_requirements || explain_failed_install
    [[ -z "$keep_torch" ]] || check_kept_torch
    echo "$fingerprint" > "$complete_mark"
    say "made $env_dir in $((SECONDS - started)) s"
    mention_other_environments
}

# Each is several GB, but another checkout may use it: only its owner knows.
mention_other_environments() {
    local others
    others="$(find "$store" -maxdepth 1 -type d -name 'env-*' ! -path "$env_dir" 2>/dev/null | sort | paste -sd ' ')"
    [[ -z "$others" ]] || say "other environments, made for other requirements or another Python: $others"
}

make_lock_files() {
    local uv version file
    scratch="$(mktemp -d)"
    trap 'rm -rf -- "$scratch"' EXIT
    "$python" -m venv "$scratch/uv"
    find_uv "$scratch/uv"
    [[ -n "$uv" ]] || die "uv, which resolves without installing, could not be had; pip install uv"
    for version in "${lock_versions[@]}"; do
        file="$(lock_file "$version")"
        lock_header > "$scratch/lock"
        "$uv" pip compile --quiet --no-header --no-annotate --no-emit-index-url --generate-hashes --upgrade \
            --python-version "$version" --python-platform x86_64-manylinux_2_28 "$requirements" >> "$scratch/lock" ||
            die "requirements.txt does not resolve on Python $version; $file is as it was"
        mv "$scratch/lock" "$file"
        say "$file: $(grep -c '^[a-z0-9]' "$file") packages"
    done
}

case "${1:-}" in
    lock) make_lock_files ;;
    create) create ;;
    python) is_complete || die "there is no environment at $env_dir; run make env"; echo "$env_python" ;;
    remove) if [[ -e "$env_dir" ]]; then lock; remove_environment; say "removed $env_dir"; fi ;;
    *) die "usage: ops/environment.sh create|python|remove|lock" ;;
esac
