#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Build the Debian packages for releases, each in a root of that release, and check them with its lintian. As root.
#
#   deb.sh inputs RELEASE...   get what a build needs, into .cache/packages: the source archives of the bundled modules,
#                              and the root of each release. Needs a Debian mirror and PyPI, once
#   deb.sh build RELEASE...    build into build/packages/RELEASE, without a network; the page for Cockpit has to be built
#   deb.sh lint RELEASE...     have lintian of that release look at it
#   deb.sh again RELEASE...    build once more, with another time, directory, host name, locale, umask and number of
#                              CPUs, and compare the bytes
#
# RELEASE is bookworm or trixie.

set -eu

cd "$(dirname "$0")/.."
cache=$PWD/.cache/packages
sources=$cache/sources
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' virt_dmem/__init__.py)
lintian='lintian --allow-root --display-info --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs'

. packaging/root.sh

say() {
    echo "deb: $*"
}

die() {
    say "$*" >&2
    exit 1
}

number() { # RELEASE
    case $1 in
    bookworm) echo 12 ;;
    trixie) echo 13 ;;
    *) die "$1 is no release that packages are made for" ;;
    esac
}

get_sources() {
    mkdir -p "$sources"
    sed -n 's/^\([^=# ]*\)==\([^ ]*\) .*sha256:\(.*\)/\1 \2 \3/p' packaging/bundled.txt | while read -r name number sum; do
        file=$(echo "$name" | tr . _)-$number.tar.gz
        echo "$sum  $file"
    done >"$sources/sums"
    (cd "$sources" && sha256sum --status --check sums) 2>/dev/null && return
    say "fetching the bundled modules"
    .venv/bin/python -m pip download --quiet --no-deps --no-binary :all: --require-hashes -r packaging/bundled.txt \
        --dest "$sources"
    (cd "$sources" && sha256sum --status --check sums)
}

make_root() { # RELEASE
    root=$(root "$1")
    [ ! -d "$root" ] || return 0
    say "making the root of $1"
    rm -rf "$cache/$1"-* "$cache/making-$1"
    mkdir -p "$cache/making-$1/control/debian"
    cp packaging/debian/control packaging/debian/changelog "$cache/making-$1/control/debian"
    # shellcheck disable=SC2016 # for mmdebstrap's hook
    mmdebstrap --variant=buildd --mode=root --quiet --aptopt='APT::Install-Recommends false' --include="$(echo "$tools" | tr " " ,)" \
        --customize-hook="copy-in $cache/making-$1/control /" \
        --customize-hook='DEBIAN_FRONTEND=noninteractive chroot "$1" apt-get -qq -y --no-install-recommends build-dep /control >/dev/null' \
        --customize-hook='rm -rf "$1/control"' \
        "$1" "$cache/making-$1/root" "deb $(mirror) $1 main"
    mv "$cache/making-$1/root" "$root"
    rm -rf "$cache/making-$1"
}

source_package() { # RELEASE DIRECTORY: the archives, and debian/ beside them
    source_tree "$version" "$2"
    cp "$sources"/asyncvarlink-*.tar.gz "$2/virt-dmem_$version.orig-asyncvarlink.tar.gz"
    cp "$sources"/qemu_qmp-*.tar.gz "$2/virt-dmem_$version.orig-qemu-qmp.tar.gz"
    cp "$sources"/msgspec-*.tar.gz "$2/virt-dmem_$version.orig-msgspec.tar.gz"
    tar -c -C build --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="$date" cockpit |
        xz -T1 -6 >"$2/virt-dmem_$version.orig-cockpit.tar.xz"
    cp -R packaging/debian "$2/debian"
    sed -i "1s/(\(.*\)) [a-z]*;/(\1~deb$(number "$1")+1) $1;/" "$2/debian/changelog"
}

# shellcheck disable=SC2016 # run in the root
build_there='
cd "$(mktemp -d -p "${where:-/tmp}")"
cp /share/*.tar.* .
tar -xf virt-dmem_*.orig.tar.xz
cd virt-dmem-*/
for part in asyncvarlink qemu-qmp msgspec cockpit; do
    mkdir "$part"
    tar -C "$part" --strip-components=1 -xf ../virt-dmem_*.orig-"$part".tar.?z
done
cp -R /share/debian debian
dpkg-buildpackage -us -uc >/share/log 2>&1 || { tail -n 60 /share/log; exit 1; }
mkdir /share/out
cp ../*.deb ../*.dsc ../*.changes ../*.buildinfo ../*.debian.tar.* /share/out
'

build() { # RELEASE
    [ -d "$(root "$1")" ] || die "there is no root of $1 yet: packaging/deb.sh inputs $1"
    [ -e build/cockpit/index.js ] || die "the page for Cockpit is not built yet: make cockpit"
    began=$(date +%s)
    work=$(mktemp -d -p "$scratch")
    source_package "$1" "$work"
    in_root "$(root "$1")" "$work" "$build_there"
    rm -rf "build/packages/$1"
    mkdir -p build/packages
    mv "$work/out" "build/packages/$1"
    cp "$work"/*.orig* "$work/log" "build/packages/$1"
    rm -rf "$work"
    say "$1: in $(($(date +%s) - began)) s, build/packages/$1:"
    (cd "build/packages/$1" && wc -c -- *.deb)
}

lint() { # RELEASE
    in_root "$(root "$1")" "$PWD/build/packages/$1" "cd /share; $lintian ./*.changes" || die "$1: lintian found faults"
}

again() { # RELEASE
    work=$(mktemp -d -p "$scratch")
    source_package "$1" "$work"
    touch "$work/debian/control" # the time of files is not that of the first build
    in_root "$(root "$1")" "$work" "umask 002; hostname other; export TZ=Pacific/Kiritimati LC_ALL=C LANG=C
        export HOME=/nonexistent USER=other DEB_BUILD_OPTIONS=parallel=1; mkdir -p /var/tmp/elsewhere; where=/var/tmp/elsewhere
        $build_there"
    for package in "$work"/out/*.deb "$work"/out/*.dsc; do
        cmp "$package" "build/packages/$1/${package##*/}" || die "$1: ${package##*/} is not reproducible"
    done
    rm -rf "$work"
    say "$1: the same bytes again"
}

[ "$(id -u)" -eq 0 ] || die "only root can make a root of Debian, and enter it"
command=${1:-}
[ $# -eq 0 ] || shift
case $command in
inputs)
    get_sources
    for release in "$@"; do make_root "$release"; done
    ;;
build | lint | again)
    for release in "$@"; do "$command" "$release"; done
    ;;
*)
    echo "usage: $0 inputs | build | lint | again RELEASE..." >&2
    exit 2
    ;;
esac
