#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Build the dmemfs module from the sources in /usr/src for kernels whose headers are installed.
#
#   module build [KERNEL...]   for these kernels, or for all with headers; through DKMS if that is installed, else
#                              skipped where it was built from the same sources
#   module for-pool NAME       for the running kernel, if pool NAME is on dmemfs and the module is missing, as at the
#                              first boot after a kernel update
#   module remove              for all kernels

set -eu

version=@VERSION@
sources=@PREFIX@/src/virt-dmem-$version
pools=/var/lib/virt-dmem/pools
log=/var/log/virt-dmem-module.log
work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() {
    echo "dmemfs: $*"
}

headers() { # list the kernels that a module can be built for
    for build in /lib/modules/*/build; do
        [ ! -e "$build/Makefile" ] || basename "$(dirname "$build")"
    done
}

has_module() { # KERNEL
    [ -n "$(find "/lib/modules/$1" -name 'dmemfs.ko*' -print -quit 2>/dev/null)" ]
}

by_dkms() {
    command -v dkms >/dev/null
}

dkms_remove() { # whichever version was installed last
    dkms status -m virt-dmem 2>/dev/null | sed -n 's|^virt-dmem/\([^,:]*\).*|\1|p' | sort -u | while read -r found; do
        # dkms does not remove a version whose sources are gone, such as the previous one after an upgrade
        dkms remove -m virt-dmem -v "$found" --all >/dev/null 2>&1 || rm -rf "/var/lib/dkms/virt-dmem/$found"
    done
    for module in /lib/modules/*/updates/dkms/dmemfs.ko*; do
        [ -e "$module" ] || continue
        rm -f "$module"
        kernel=${module#/lib/modules/}
        depmod "${kernel%%/*}" || true
    done
    rmdir /var/lib/dkms/virt-dmem 2>/dev/null || true
}

source_sum() {
    (cd "$sources" && find . -type f ! -name dkms.conf | LC_ALL=C sort | xargs cat) | cksum
}

is_built() { # KERNEL: from these sources
    ! by_dkms && [ -e "/lib/modules/$1/updates/virt-dmem/dmemfs.ko" ] &&
        [ "$(cat "/lib/modules/$1/updates/virt-dmem/sources" 2>/dev/null)" = "$(source_sum)" ]
}

build() { # KERNEL: atomically
    if by_dkms; then
        dkms install --force -m virt-dmem -v "$version" -k "$1" >"$log" 2>&1 || return 1
        return
    fi
    command -v make >/dev/null || {
        echo "make is not installed" >"$log"
        return 1
    }
    work=$(mktemp -d)
    cp -R "$sources" "$work/src"
    if make -C "$work/src" KDIR="/lib/modules/$1/build" >"$log" 2>&1; then
        target=/lib/modules/$1/updates/virt-dmem
        mkdir -p "$target"
        rm -f "$target/sources"
        install -m 0644 "$work/src/dmemfs.ko" "$target/.dmemfs.new"
        mv -f "$target/.dmemfs.new" "$target/dmemfs.ko"
        depmod "$1" || true
        source_sum >"$target/sources"
        done=yes
    else
        done=
    fi
    rm -rf "$work"
    [ -n "$done" ]
}

build_all() { # KERNEL...
    if [ $# -eq 0 ]; then
        # shellcheck disable=SC2046 # names of kernels have no spaces
        set -- $(headers)
    fi
    if [ $# -eq 0 ]; then
        say "the module was not built, because no kernel headers are installed (Debian: linux-headers-amd64 or -arm64)."
        say "Pools of huge pages do not need it. To build it later: $0 build"
        return
    fi
    if by_dkms; then
        dkms add -m virt-dmem -v "$version" >"$log" 2>&1 || true
    fi
    for kernel in "$@"; do
        if is_built "$kernel"; then
            say "already built for $kernel from the same sources"
        elif build "$kernel"; then
            say "built for $kernel"
        else
            say "building the module for $kernel failed; the end of $log:"
            tail -n 3 "$log" | sed 's/^/dmemfs:     /'
        fi
    done
}

case ${1:-} in
build)
    shift
    if [ $# -eq 0 ] && by_dkms; then # the sources may have changed
        dkms_remove
    fi
    build_all "$@"
    ;;
for-pool)
    grep -qs '"backend": *"dmemfs"' "$pools/$2.json" || exit 0
    kernel=$(uname -r)
    has_module "$kernel" || build_all "$kernel"
    ;;
remove)
    if by_dkms; then
        dkms_remove
    fi
    for module in /lib/modules/*/updates/virt-dmem; do
        [ -d "$module" ] || continue
        rm -rf "$module"
        rmdir "$(dirname "$module")" 2>/dev/null || true
        kernel=${module#/lib/modules/}
        depmod "${kernel%%/*}" || true
    done
    if [ -d /sys/module/dmemfs ] && [ -d /sys/fs/dmemfs ]; then
        rmmod dmemfs 2>/dev/null || say "the module is in use and remains loaded until the next boot."
    fi
    rm -f "$log"
    ;;
*)
    echo "usage: $0 build [KERNEL...] | for-pool NAME | remove" >&2
    exit 2
    ;;
esac
