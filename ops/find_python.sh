# Sourced by the scripts beside it: sets `python` to the repository's interpreter and lets it find `ops` from any folder.
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
if [[ -n "${OPS_PYTHON:-}" ]]; then
    python="$OPS_PYTHON" # an environment of one's own
else
    python="$("$repo/ops/environment.sh" python)"
fi
