#!/usr/bin/env bash
# Write requirements/cpu.txt anew: every package of the `cpu`, `pd` and `dev` extras, pinned.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -m venv --clear build/lock
build/lock/bin/pip install --quiet 'uv>=0.8'
build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
  --extra cpu --extra pd --extra dev --override requirements/overrides.txt \
  pyproject.toml requirements/torch.in |
  grep -v "'never'" > build/lock/cpu.txt
{ echo "# Written by scripts/update_lock.sh"; cat build/lock/cpu.txt; } > requirements/cpu.txt
