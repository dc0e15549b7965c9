#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The Cockpit page: needs node (18 or later) and npm to build it, neither to run it.
#
#   cockpit.sh build       check types, style and logic, and write the page to build/cockpit
#   cockpit.sh install     put it below DESTDIR and PREFIX, where Cockpit looks for pages
#   cockpit.sh uninstall   remove it from there

set -eu

cd "$(dirname "$0")/.."
dest=${DESTDIR:-}
prefix=${PREFIX:-/usr}
place=$dest$prefix/share/cockpit/virt-dmem

die() {
    echo "cockpit: $*" >&2
    exit 1
}

build() {
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        die "node and npm are needed (Debian: apt install npm)"
    fi
    cd packaging/cockpit
    if ! cmp -s package-lock.json node_modules/.installed-lock; then
        npm ci --no-progress --ignore-scripts
        cp package-lock.json node_modules/.installed-lock
    fi
    npm run --silent check
    npm run --silent lint
    npm run --silent test
    npm run --silent build
}

case ${1:-} in
build) build ;;
install)
    [ -e build/cockpit/index.js ] || die "run 'make cockpit' first"
    install -d -m 0755 "$place"
    install -m 0644 build/cockpit/* "$place"
    ;;
uninstall)
    rm -rf "$place"
    rmdir "$dest$prefix/share/cockpit" 2>/dev/null || true # the pages of others are in it
    ;;
*)
    echo "usage: $0 build | install | uninstall" >&2
    exit 2
    ;;
esac
