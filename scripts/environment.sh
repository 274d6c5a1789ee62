# Sourced by the other scripts: makes the virtual environment and puts it first on PATH.
# It is the folder NEURON_SERVE_VENV, else .venv in the clone. A second run does nothing.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${NEURON_SERVE_VENV:-$root/.venv}"
python="${PYTHON:-python3}"

fail() { echo "$(basename "$0"): $*" >&2; exit 1; }
step() { echo "[setup] $*" >&2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail "needs Python 3.11 or newer -> install it, or set PYTHON=/path/to/python3.12"

# What the environment is made of: if that has not changed, there is nothing to do, and no network
# is needed.
stamp="$(cat "$root"/requirements/cpu.txt "$root"/pyproject.toml "$root"/requirements/vllm-name/pyproject.toml \
  "$root"/scripts/environment.sh | cksum) $root $("$python" -V)"

if [ "$(cat "$venv/neuron-serve.stamp" 2>/dev/null)" != "$stamp" ]; then
  step "virtual environment in $venv (about 3 GB, once)"
  "$python" -m venv "$venv" || fail "cannot make $venv -> apt install python3-venv, or set NEURON_SERVE_VENV"
  pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@" 2> >(grep -v '^WARNING: Location' >&2); }
  step "1/3 torch 2.13, CPU build"
  pip install --quiet 'torch==2.13.0+cpu' 2>/dev/null ||
    pip install --quiet 'torch==2.13.0+cpu' --index-url https://download.pytorch.org/whl/cpu ||
    fail "cannot install torch==2.13.0+cpu -> check the network"
  step "2/3 vLLM, Ray and what they need ($(grep -c == "$root/requirements/cpu.txt") packages)"
  pip install --quiet --no-deps -r "$root/requirements/cpu.txt" ||
    fail "cannot install requirements/cpu.txt -> check the network and the disk"
  step "3/3 neuron-serve"
  pip install --quiet --no-deps --no-build-isolation "$root/requirements/vllm-name" -e "$root" ||
    fail "cannot install neuron-serve"
  echo "$stamp" > "$venv/neuron-serve.stamp"
fi
export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
