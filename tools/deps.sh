#!/bin/bash
# deps.sh - installs the Debian/Ubuntu packages that stagediff is built from, if any is missing.
# As root or with sudo; otherwise it prints the command and stops. Called by make deps, make demo and make test.
set -u
packages="build-essential pkg-config libjansson-dev libsqlite3-dev libjpeg-dev libpng-dev libpcre2-dev zlib1g-dev
libdnnl-dev libcmocka-dev gnuplot-nox"
[ "${1:-}" = lint ] && packages="$packages cppcheck clang-format"
missing=""
for p in $packages; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "deps: this is no Debian or Ubuntu; please install the equivalents of:$missing" >&2
    exit 2
fi
if [ "$(id -u)" = 0 ]; then as_root=""
elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then as_root=sudo
else
    echo "deps: missing packages; run as root:  apt-get install --no-install-recommends$missing" >&2
    exit 2
fi
echo "deps: installing$missing"
$as_root apt-get update -qq || exit 2
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null || exit 2
