#!/usr/bin/env bash
# Save one file on an rclone remote again and again, and a last time when this is stopped.
#   ops/sync_rclone_file.sh coc_outputs/labels.jsonl gdrive:runs/labels --interval 60
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/find_python.sh"
exec "$python" -m ops.sync file "$@"
