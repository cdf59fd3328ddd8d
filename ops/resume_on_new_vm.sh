#!/usr/bin/env bash
# Go on with a run on whatever machine this is: bring its folder back if it is not here, then run the command with
# --resume and save beside it. The first start, with nothing saved yet, starts the run. Fit for a VM start-up script.
#   ops/resume_on_new_vm.sh --local logs_c --remote gdrive:runs/logs_c -- python train_model_c.py --log_dir logs_c …
# What stands before -- goes to `ops.sync run`. RESUME_FLAG= (empty) is for commands that go on by themselves.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/find_python.sh"

local_dir="" remote="" options=()
while (($#)) && [[ "$1" != -- ]]; do
    case "$1" in
        --local) local_dir="${2:-}"; shift ;;
        --remote) remote="${2:-}"; shift ;;
        --local=*) local_dir="${1#*=}" ;;
        --remote=*) remote="${1#*=}" ;;
        *) options+=("$1") ;;
    esac
    (($# == 0)) || shift
done
if [[ -z "$local_dir" || -z "$remote" || $# -lt 2 ]]; then
    echo "error: usage: ops/resume_on_new_vm.sh --local FOLDER --remote REMOTE [options of ops.sync run] -- command …" >&2
    exit 2
fi
shift

"$python" -m ops.sync restore "$remote" "$local_dir" --keep_local --allow_empty
resume_flag="${RESUME_FLAG---resume}"
PATH="$(dirname "$python"):$PATH"
# shellcheck disable=SC2086  # an empty flag is to vanish
exec "$python" -m ops.sync run --local "$local_dir" --remote "$remote" ${options[@]+"${options[@]}"} -- "$@" $resume_flag
