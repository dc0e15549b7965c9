#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Build the RPMs of packaging/rpm/virt-dmem.spec with Debian's rpmbuild, have rpmlint look at them, and compare their files
# with those of the .deb. This says that the spec is whole; nothing is installed on a host of Fedora here. As root.
#
#   rpm.sh inputs    get what the build needs, into .cache/packages
#   rpm.sh build     build into build/rpm, without a network
#   rpm.sh lint      rpmlint
#   rpm.sh compare   list the files that only the .deb (<) or only the RPMs (>) have; made for trixie: packaging/deb.sh

set -eu

cd "$(dirname "$0")/.."
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' virt_dmem/__init__.py)
base=trixie # it has all the Python modules that Fedora has
packages="rpm rpmlint systemd-dev gcc make bzip2 libjson-c-dev selinux-policy-dev semodule-utils checkpolicy m4
    python3-dev python3-libvirt python3-lxml python3-msgspec python3-prometheus-client python3-pyudev python3-rich python3-shtab"

. packaging/root.sh

root=$PWD/.cache/packages/rpm-$(echo "$packages" | sha256sum | cut -c 1-16)

die() {
    echo "rpm: $*" >&2
    exit 1
}

inputs() {
    packaging/deb.sh inputs
    [ ! -d "$root" ] || return 0
    rm -rf .cache/packages/making-rpm .cache/packages/rpm-*
    # shellcheck disable=SC2086 # a list
    mmdebstrap --variant=minbase --mode=root --quiet --aptopt='APT::Install-Recommends false' \
        --include="$(echo $packages | tr ' ' ,)" "$base" .cache/packages/making-rpm "deb $(mirror) $base main"
    mv .cache/packages/making-rpm "$root"
}

# shellcheck disable=SC2016 # run in the root
build_there='
top=/root/rpmbuild
mkdir -p $top/SOURCES
cp /share/*.tar.* $top/SOURCES
# names of packages are Fedora'"'"'s
rpmbuild --nodeps -ba /share/virt-dmem.spec >/share/log 2>&1 || { tail -n 60 /share/log; exit 1; }
mkdir /share/out
find $top/RPMS $top/SRPMS -name "*.rpm" -exec cp {} /share/out \;
'

build() {
    [ -d "$root" ] || die "there is no root yet: packaging/rpm.sh inputs"
    work=$(mktemp -d)
    source_tree "$version" "$work"
    cp .cache/packages/sources/asyncvarlink-*.tar.gz .cache/packages/sources/qemu_qmp-*.tar.gz "$work"
    cp packaging/rpm/virt-dmem.spec "$work"
    in_root "$root" "$work" "$build_there"
    rm -rf build/rpm
    mkdir -p build
    mv "$work/out" build/rpm
    cp "$work/log" "$work/virt-dmem.spec" build/rpm
    rm -rf "$work"
    (cd build/rpm && wc -c -- *.rpm)
}

lint() {
    cp packaging/rpm/rpmlint.toml build/rpm
    in_root "$root" "$PWD/build/rpm" "rpmlint --config /share/rpmlint.toml /share/*.spec /share/*.rpm"
}

# shellcheck disable=SC2016 # run in the root
compare() {
    work=$(mktemp -d)
    for deb in build/packages/"$base"/virt-dmem_*.deb build/packages/"$base"/virt-dmem-dkms_*.deb; do
        dpkg-deb -c "$deb" | sed -n 's/^[^d].* \.\(\/[^ ]*\).*/\1/p'
    done | sed 's/\.gz$//' | sort >"$work/deb"
    in_root "$root" "$PWD/build/rpm" 'for rpm in /share/*.rpm; do
        case $rpm in *.src.rpm | *debug*) ;; *) rpm -qlvp "$rpm" | sed -n "s/^[^d].* \(\/[^ ]*\).*/\1/p" ;; esac
    done' | sed 's/\.gz$//; /__pycache__/d' | sort >"$work/rpm"
    diff "$work/deb" "$work/rpm" | grep '^[<>]' || true
    echo "rpm: $(comm -12 "$work/deb" "$work/rpm" | wc -l) files are the same"
    rm -rf "$work"
}

[ "$(id -u)" -eq 0 ] || die "only root can make a root of Debian, and enter it"
case ${1:-} in
inputs | build | lint | compare) "$1" ;;
*)
    echo "usage: $0 inputs | build | lint | compare" >&2
    exit 2
    ;;
esac
