#!/usr/bin/env bash
# Lint, types, layers and all tests.   ./scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "$0")/environment.sh"
cd "$root"
step() { echo "== $*"; }

step ruff
ruff format --check .
ruff check .
step mypy
mypy
step import-linter
lint-imports
"$root"/scripts/prometheus.sh "$venv/prometheus" ||
  command -v promtool >/dev/null || step "no prometheus: tests of queries and alerts are skipped"
step pytest
exec python -m pytest "$@"
