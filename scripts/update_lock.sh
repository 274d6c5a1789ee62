#!/usr/bin/env bash
# Write the pins anew: requirements/cpu.txt has every package of the `cpu`, `pd`, `bench` and `dev` extras,
# image.txt those of the CPU image, neuron.txt those that may change in AWS's images (neuron.in).
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -m venv --clear build/lock
build/lock/bin/pip install --quiet 'uv>=0.8'
lock() {  # FILE, then options of uv
  local file="$1"
  build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
    "${@:2}" --override requirements/overrides.txt pyproject.toml requirements/torch.in |
    grep -v "'never'" > "build/lock/$file"
  { echo "# Written by scripts/update_lock.sh"; cat "build/lock/$file"; } > "requirements/$file"
}
lock cpu.txt --extra cpu --extra pd --extra bench --extra dev
lock image.txt --extra cpu --extra pd --extra redis --extra s3 --constraint requirements/cpu.txt
{ echo "# Written by scripts/update_lock.sh"
  grep -E "^($(grep -v '^#' requirements/neuron.in | paste -sd'|'))==" requirements/cpu.txt
} > requirements/neuron.txt
