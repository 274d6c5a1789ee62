#!/usr/bin/env bash
# Debian's prometheus and promtool in a folder, for the tests of queries and alerts: unpacked, not
# installed, so no service starts. A second run does nothing.   ./scripts/prometheus.sh DIR
set -euo pipefail
to="$(realpath -m "$1")"
[ -x "$to/usr/bin/promtool" ] && exit
command -v apt-get >/dev/null && command -v dpkg >/dev/null || exit 1
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
fetch() { apt-get download -qq prometheus >/dev/null 2>&1; }
fetch || { [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 && fetch; } || exit 1
mkdir unpacked
dpkg -x prometheus_*.deb unpacked
"unpacked/usr/bin/promtool" --version >/dev/null 2>&1
rm -rf "$to"
mv unpacked "$to"
