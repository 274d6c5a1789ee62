#!/usr/bin/env bash
# Serve the demo model, ask it a question and stream the answer; then serve until Ctrl-C.
#   ./scripts/demo.sh [--once]     --once: end after the answer
set -euo pipefail
case "${1:-}" in
  ""|--once) once="${1:-}" ;;
  *) sed -n '2,3s/^# *//p' "$0"; [ "$1" = --help ] && exit 0; exit 2 ;;
esac
source "$(dirname "$0")/environment.sh"
cd "$root"

neuron-serve run configs/local-cpu.yaml &
server=$!
trap 'kill -TERM "$server" 2>/dev/null; wait "$server" || true' EXIT
trap 'exit 130' INT TERM
python scripts/ask.py --wait-for "$server" "What is neuron-serve?"
[ "$once" ] || wait "$server"
