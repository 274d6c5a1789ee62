#!/usr/bin/env bash
# Install neuron-serve into AWS's image and leave what is there as it is.
#   extend.sh REQUIREMENTS WHEEL
# Only the packages that REQUIREMENTS names may change version (Ray needs newer web packages than
# the image has); every other one is held by a constraint, and looked at afterwards once more.
set -euo pipefail
requirements="$1" wheel="$2"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# name==version, the name as PEP 503 normalises it
installed() {
  python -m pip list --format=freeze --disable-pip-version-check |
    awk -F== '{ name = tolower($1); gsub(/[-_.]+/, "-", name); print name "==" $2 }' | sort
}
complaints() { { python -m pip check --disable-pip-version-check || true; } | sort; }

installed > "$work/before"
complaints > "$work/complaints"
awk -F== 'NR == FNR { named[$1]; next } !($1 in named)' "$requirements" "$work/before" > "$work/held"

python -m pip install --no-cache-dir --disable-pip-version-check \
  --constraint "$work/held" --requirement "$requirements" "neuron-serve[redis,s3] @ file://$wheel"

lost="$(comm -23 "$work/held" <(installed))"
if [ "$lost" ]; then
  echo "extend.sh: no longer as in the base image:" $lost >&2
  exit 1
fi
new="$(comm -13 "$work/complaints" <(complaints))"
if [ "$new" ]; then
  printf 'extend.sh: packages that no longer fit:\n%s\n' "$new" >&2
  exit 1
fi
