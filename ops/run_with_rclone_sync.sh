#!/usr/bin/env bash
# Run a command and save its folder on an rclone remote beside it. `python` is the repository's own.
#   ops/run_with_rclone_sync.sh --local logs_c --remote gdrive:runs/logs_c -- python train_model_c.py --log_dir logs_c …
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/find_python.sh"
PATH="$(dirname "$python"):$PATH"
exec "$python" -m ops.sync run "$@"
