#!/usr/bin/env bash
# Build the container images, and push them.
#   ./scripts/build_images.sh [--only NAME] [--push REPOSITORY] [--print]
# --only NAME         one image: cpu, or the back end and vLLM of a stack in stacks.json: nxdi-0.13
# --push REPOSITORY   tag as REPOSITORY:<version>-<name>, and push; without it: neuron-serve:...
# --print             print the commands, run nothing
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "build_images.sh: $*" >&2; exit "${code:-1}"; }
usage() { sed -n '2,6s/^# *//p' "scripts/build_images.sh"; }

only="" repository=neuron-serve push="" print=""
while [ $# -gt 0 ]; do
  case "$1" in
    --only | --push) [ "${2:-}" ] || code=2 fail "$1 needs a value" ;;&
    --only) only="$2"; shift 2 ;;
    --push) repository="$2" push=yes; shift 2 ;;
    --print) print=yes; shift ;;
    --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

# name, Dockerfile, base: the newest stack of each back end and vLLM
images="$(python3 - << 'PYTHON'
import json
print("cpu kuberay/images/cpu.Dockerfile -")
newest = {}
for stack in json.load(open("serve_app/neuron/stacks.json")):
    newest.setdefault(f"{stack['backend']}-{stack['vllm']}", stack["image"])
for name, image in sorted(newest.items()):
    print(name, "kuberay/images/neuron.Dockerfile", image)
PYTHON
)"
version="$(sed -n 's/^VERSION = "\(.*\)"$/\1/p' serve_app/version.py)"
if [ "$only" ]; then
  names="$(cut -d' ' -f1 <<< "$images" | paste -sd' ')"
  images="$(awk -v only="$only" '$1 == only' <<< "$images")"
  [ "$images" ] || code=2 fail "no image $only -> one of: $names"
fi

builder=""
docker buildx version > /dev/null 2>&1 && builder=docker
for program in podman finch; do
  [ "$builder" ] || ! command -v "$program" > /dev/null || builder="$program"
done
[ "$builder" ] || [ "$print" ] || fail "nothing here builds images -> install docker with buildx, podman or finch"
builder="${builder:-docker}"
case "$builder" in docker) build="docker buildx build --load" ;; *) build="$builder build" ;; esac

run() { printf '%s\n' "$*"; [ "$print" ] || "$@" < /dev/null; }
while read -r name file base; do
  tag="$repository:$version-$name"
  arguments=(--build-arg "VERSION=$version")
  [ "$base" = - ] || arguments+=(--build-arg "BASE=$base")
  run $build --platform linux/amd64 --file "$file" "${arguments[@]}" --tag "$tag" .
  [ -z "$push" ] || run "$builder" push "$tag"
done <<< "$images"
