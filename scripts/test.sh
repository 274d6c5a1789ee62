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
step pytest
exec python -m pytest "$@"
