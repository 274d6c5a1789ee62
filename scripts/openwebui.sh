#!/usr/bin/env bash
# Open WebUI, a chat page, for a running service; serves until Ctrl-C.
#   ./scripts/openwebui.sh [--url http://127.0.0.1:8000/v1] [--port 3000] [--install-only]
# --url URL        the service's API; its key, if it asks for one, is taken from OPENAI_API_KEY
# --port PORT      where the page listens, on 127.0.0.1
# --install-only   make the virtual environment, start nothing
# Its packages are in the folder NEURON_SERVE_WEBUI_VENV, else .venv-openwebui in the clone, its
# accounts and chats in DATA_DIR, else in the folder data in there. Any further variable of
# Open WebUI may be set before the call: it wins over what is set here.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${NEURON_SERVE_WEBUI_VENV:-$root/.venv-openwebui}"
data="${DATA_DIR:-$venv/data}"
need_mib=1500   # 600 installed; as much again where the download cache is on another file system
start_s=600   # 20 on an idle machine
fail() { echo "openwebui.sh: $*" >&2; exit "${code:-1}"; }
step() { echo "[openwebui] $*" >&2; }

url=http://127.0.0.1:8000/v1 port=3000 install_only=""
while [ $# -gt 0 ]; do
  case "$1" in
    --url | --port) [ "${2:-}" ] || code=2 fail "$1 needs a value" ;;&
    --url) url="${2%/}"; shift 2 ;;
    --port) port="$2"; shift 2 ;;
    --install-only) install_only=yes; shift ;;
    --help) sed -n '2,9s/^# *//p' "$0"; exit 0 ;;
    *) sed -n '2,6s/^# *//p' "$0" >&2; exit 2 ;;
  esac
done
[[ "$port" =~ ^[0-9]{1,5}$ ]] || code=2 fail "--port $port is not a number"

# The same as in kuberay/components/open-webui, where it means the same there (a test compares).
settings=(
  ENABLE_OLLAMA_API=false
  # Open WebUI sends 26,000 characters of tools of its own with every message, else; a service
  # without enable_auto_tool_choice answers that with 400.
  'DEFAULT_MODEL_METADATA={"capabilities": {"builtin_tools": false}}'
  # One request per message: title, tags and follow-ups are further prompts to the same model.
  ENABLE_TITLE_GENERATION=false
  ENABLE_TAGS_GENERATION=false
  ENABLE_FOLLOW_UP_GENERATION=false
  AIOHTTP_CLIENT_TIMEOUT=3600
  ENABLE_VERSION_UPDATE_CHECK=false
  ANONYMIZED_TELEMETRY=false
  DO_NOT_TRACK=true
  SCARF_NO_ANALYTICS=true
)
# Only here: requirements/openwebui.txt has the slim mode's packages, nothing is fetched at start,
# and --url counts at every start, not only at the first.
settings+=(
  USE_SLIM_DOCKER=true
  OFFLINE_MODE=true
  HF_HUB_OFFLINE=1
  ENABLE_PERSISTENT_CONFIG=false
)

python=""
for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
  "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2> /dev/null || continue
  python="$candidate"; break
done
[ "$python" ] || fail "Open WebUI needs Python 3.11 or 3.12 -> set PYTHON=/path/to/python3.12"

if [ -z "$install_only" ]; then
  "$python" - "$url" "$port" << 'PYTHON' || exit 1
import os, socket, sys, urllib.error, urllib.request
url, port = sys.argv[1], int(sys.argv[2])
def fail(text): sys.exit(f"openwebui.sh: {text}")
try:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
except (OSError, OverflowError) as error:
    fail(f"cannot listen on 127.0.0.1:{port}: {getattr(error, 'strerror', error)} -> choose another --port")
try:
    key = os.environ.get("OPENAI_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    urllib.request.urlopen(urllib.request.Request(f"{url}/models", headers=headers), timeout=10).read()
except urllib.error.HTTPError as error:
    if error.code in (401, 403):
        fail(f"{url} asks for a key ({error.code}) -> export OPENAI_API_KEY=<one of access.keys>")
    fail(f"{url}/models answers {error.code} -> --url is the address that ends in /v1")
except (OSError, ValueError) as error:
    fail(f"nothing answers at {url}/models ({getattr(error, 'reason', error)}) -> "
         "start it first: neuron-serve run configs/local-cpu.yaml")
PYTHON
fi

mkdir -p "$venv" || fail "cannot make $venv -> set NEURON_SERVE_WEBUI_VENV"
stamp="$(cksum < "$root/requirements/openwebui.txt") $("$python" -V)"
exec 9> "$venv/install.lock"
flock 9   # a second call waits for the first
if [ "$(cat "$venv/neuron-serve.stamp" 2> /dev/null)" != "$stamp" ]; then
  free_mib="$(df --output=avail -m "$venv" | tail -1)"
  [ "$free_mib" -ge "$need_mib" ] ||
    fail "$venv has $free_mib MiB free, Open WebUI needs $need_mib -> set NEURON_SERVE_WEBUI_VENV to another disk"
  step "installing Open WebUI into $venv (about 0.6 GB, once)"
  "$python" -m venv "$venv" || fail "cannot make $venv -> apt install python3-venv, or set NEURON_SERVE_WEBUI_VENV"
  pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@" 2> >(grep -v '^WARNING: Location' >&2); }
  # uv takes 5 s of CPU for these packages, pip 96: it compiles every file.
  { pip install --quiet --no-compile 'uv>=0.8' &&
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps -r "$root/requirements/openwebui.txt"; } ||
    pip install --quiet --no-deps -r "$root/requirements/openwebui.txt" ||
    fail "cannot install requirements/openwebui.txt -> check the network and the disk"
  echo "$stamp" > "$venv/neuron-serve.stamp"
fi
exec 9>&-
[ -z "$install_only" ] || exit 0

umask 077
mkdir -p "$data/static"
data="$(cd "$data" && pwd)"
[ -s "$data/secret-key" ] || "$python" -c 'import secrets; print(secrets.token_hex(32))' > "$data/secret-key"
for setting in "${settings[@]}"; do
  name="${setting%%=*}"
  [ "${!name+set}" ] || export "$setting"
done
export DATA_DIR="$data" STATIC_DIR="$data/static" OPENAI_API_BASE_URL="$url"
export WEBUI_SECRET_KEY="${WEBUI_SECRET_KEY:-$(cat "$data/secret-key")}"
export CORS_ALLOW_ORIGIN="${CORS_ALLOW_ORIGIN:-http://127.0.0.1:$port;http://localhost:$port}"

log="$data/open-webui.log"
step "waiting for the page (log: $log)"
cd "$data"
"$venv/bin/open-webui" serve --host 127.0.0.1 --port "$port" > "$log" 2>&1 &
server=$!
stop() {
  trap '' INT TERM
  kill -TERM "$server" 2> /dev/null || return 0
  for _ in {1..50}; do kill -0 "$server" 2> /dev/null || return 0; sleep 0.1; done
  kill -KILL "$server" 2> /dev/null || true   # uvicorn waits for answers under way
}
trap stop EXIT
trap 'exit 130' INT TERM
healthy() { "$python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' "http://127.0.0.1:$port/health" 2> /dev/null; }
until healthy; do
  kill -0 "$server" 2> /dev/null || fail "Open WebUI ended: $(tail -1 "$log") -> $log"
  [ "$SECONDS" -lt "$start_s" ] || fail "no page within $start_s s -> $log"
  sleep 1
done
step "ready in $SECONDS s: http://127.0.0.1:$port (the first account becomes the administrator; Ctrl-C stops it)"
wait "$server" || fail "Open WebUI ended: $(tail -1 "$log") -> $log"
