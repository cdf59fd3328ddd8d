#!/usr/bin/env bash
# Resolve requirements.txt for each supported Python, with and without an own torch, and say what is wrong.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$("$repo/ops/environment.sh" python)"
uv="$(command -v uv || echo "$(dirname "$python")/uv")"
[[ -x "$uv" ]] || { echo "error: uv is needed to resolve without installing; pip install uv" >&2; exit 1; }
eval "$("$python" "$repo/ops/uv_from_pip.py")"
failed=0

# Prints the resolved packages, one a line, all lower case.
resolve() {
    local version="$1"
    shift
    "$uv" pip compile --quiet --no-header --no-annotate --python-version "$version" "$@" "$repo/requirements.txt"
}

for version in 3.11 3.12; do
    if packages="$(resolve "$version")" && grep -q '^torch==' <<< "$packages"; then
        echo "Python $version: $(wc -l <<< "$packages") packages, $(grep -E '^(lerobot|torch|transformers)==' <<< "$packages" | xargs)"
    else
        echo "error: requirements.txt does not resolve on Python $version" >&2
        failed=1
    fi
    if ! grep -q "$(sha256sum < "$repo/requirements.txt" | cut -c 1-64)" "$repo/requirements-$version.lock"; then
        echo "error: requirements-$version.lock was not made from this requirements.txt; run make lock" >&2
        failed=1
    fi
    if ! packages="$(resolve "$version" --override "$repo/requirements-keep-torch.txt")"; then
        echo "error: requirements.txt without torch does not resolve on Python $version" >&2
        failed=1
    elif intruders="$(grep -E '^(torch|torchvision|torchaudio|torchcodec|triton|nvidia-.*|cuda-.*)==' <<< "$packages")"; then
        echo "error: KEEP_TORCH=1 on Python $version would still install" $intruders >&2
        failed=1
    else
        echo "Python $version, torch kept: $(wc -l <<< "$packages") packages, none of torch's"
    fi
done
exit "$failed"
