#!/usr/bin/env bash
# Lint, types, layers and all tests.   ./scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "$0")/environment.sh"
cd "$root"
step() { echo "== $*"; }

# The browser test's packages, beside the first steps (it waits for them): in CI, or to renew them.
if [ "${CI:-}" ] || [ -d "${NEURON_SERVE_WEBUI_VENV:-.venv-openwebui}" ]; then
  step "Open WebUI, in the background"
  nice ./scripts/openwebui.sh --install-only &
fi
if [ "${CI:-}" ] && ! command -v chromium > /dev/null; then
  step "Chromium"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -qq --no-install-recommends chromium; } > /dev/null ||
    echo "no Chromium: the browser test will be skipped"
fi

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
[ $# = 0 ] || exec python -m pytest "$@"
status=0
python -m pytest tests/unit || status=$?
python -m pytest tests/serving || status=$?
exit $status
