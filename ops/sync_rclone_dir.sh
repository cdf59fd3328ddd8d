#!/usr/bin/env bash
# Save a folder on an rclone remote again and again, and a last time when this is stopped.
#   ops/sync_rclone_dir.sh logs_c gdrive:runs/logs_c --interval 60
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/find_python.sh"
exec "$python" -m ops.sync dir "$@"
