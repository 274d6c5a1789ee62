#!/usr/bin/env bash
# Build kuberay/images/cpu.Dockerfile for real and start what comes out, on a Debian machine that
# has no container engine:   sudo ./scripts/try_cpu_image.sh
#
# Needs root, buildah, debootstrap, Python 3.11 and 12 GB in $TMPDIR; takes some minutes. A stand-in
# takes the place of the base image: Debian 12 by debootstrap, and this machine's Python 3.11 in
# /usr/local. Every line of the Dockerfile then runs as written, isolated by chroot only; pip and
# apt ask whom they ask on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "try_cpu_image.sh: $*" >&2; exit 1; }
step() { echo "== $*"; }
[ "$(id -u)" = 0 ] || fail "needs root"
for program in buildah debootstrap; do
  command -v "$program" > /dev/null || fail "no $program -> apt-get install $program"
done
python="${PYTHON:-python3.11}"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || fail "needs Python 3.11 -> set PYTHON"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
b() { buildah --root "$work/store" --runroot "$work/run" "$@"; }
image="$(sed -n 's/^FROM //p' kuberay/images/cpu.Dockerfile | tail -1)"

step "stand-in for $image"
root="$work/root"
debootstrap --variant=minbase --include=ca-certificates,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,libreadline8,zlib1g \
  bookworm "$root" > "$work/log" || { tail "$work/log"; fail "debootstrap"; }
home="$("$python" -c 'import sys; print(sys.base_prefix)')"
tar -C "$home" -c --exclude=site-packages --exclude=dist-packages --exclude=__pycache__ --exclude=test \
  bin/python3.11 include/python3.11 lib/python3.11 $(cd "$home" && ls -d lib/libpython3* 2> /dev/null) |
  tar -C "$root/usr/local" -x
mkdir -p "$root/usr/local/lib/python3.11/site-packages"
ln -s python3.11 "$root/usr/local/bin/python"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
chroot "$root" ldconfig
# This machine's pip settings, and the folders that they name.
pip_folders=()
{ echo "[global]"; "$python" -m pip config list | sed -n "s/^[a-z:]*\.\(find-links\|index-url\|extra-index-url\|cert\)='\(.*\)'$/\1 = \2/p" | sort -u -t= -k1,1; } > "$root/etc/pip.conf"
for word in $(sed -n 's/^[a-z-]* = //p' "$root/etc/pip.conf"); do
  case "$word" in file://*) word="$(dirname "${word#file://}")" ;; esac  # beside it lie the files
  [ ! -d "$word" ] || pip_folders+=(--volume "$word:$word:ro")
done
container="$(b from scratch)"
b add --quiet "$container" "$root" / > /dev/null
b config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
b commit --quiet --rm "$container" "$image" > /dev/null
rm -rf "$root"

step "build"
b build --pull-never --network host "${pip_folders[@]}" --build-arg VERSION=0 \
  --file kuberay/images/cpu.Dockerfile --tag try .

step "start"
container="$(b from --pull-never try)"
run() { echo "\$ $*"; b run --volume "$PWD/configs:/configs:ro" "$container" -- "$@"; }
run id
run neuron-serve version
run neuron-serve check /configs/local-cpu.yaml
run python -c 'import ray, nixl, serve_app, torch, vllm
from vllm.platforms import current_platform
current_platform.import_kernels()  # the library of this processor; it links libnuma
print("ray", ray.__version__, "vllm", vllm.__version__, torch.ops._C.silu_and_mul)'
run sh -c 'test -x "$RAY_SERVE_HAPROXY_BINARY_PATH" && neuron-serve-haproxy -v | head -1'
run python -c 'import torch; print(torch.compile(lambda x: x.sin() + 1)(torch.zeros(8)))'
run bash -c 'command -v wget grep bash; test -w /var/lib/neuron-serve; du -sh /opt/neuron-serve'
b images
echo "== the CPU image builds and starts"
