#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Make a machine with Debian 12 or 13 ready for development: packages, .venv, the helper, the guest's kernel.
# What is there is left alone, so a second run takes a moment and needs no network.
#
# No service is started by what is installed here: while apt runs, policy-rc.d says no. (Where systemd runs, the
# units of a libvirt that was installed here are enabled all the same, and start at the next boot.)

set -eu

# bin/busybox is busybox-static's
packages="
    busybox-static cpio dpkg xz-utils mount apparmor shellcheck
    gcc libc6-dev make pkg-config
    python3 python3-dev python3-venv libvirt-dev
    libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system
    qemu-system-x86
"

cd "$(dirname "$0")/../.."
cache=$PWD/.cache
venv=$PWD/.venv
log=$cache/setup.log
mkdir -p "$cache"
: >"$log"

say() {
    echo "setup: $*"
}

# Run quietly; show the log when it fails.
quietly() {
    echo "+ $*" >>"$log"
    if ! "$@" >>"$log" 2>&1; then
        say "this failed: $*" >&2
        tail -n 40 "$log" >&2
        exit 1
    fi
}

missing_packages() {
    for package in $packages; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=
        [ "$status" = installed ] || echo "$package"
    done
}

policy=/usr/sbin/policy-rc.d

restore_policy() {
    rm -f "$policy"
    if [ -e "$policy.virt-dmem-saved" ] || [ -L "$policy.virt-dmem-saved" ]; then
        mv -f "$policy.virt-dmem-saved" "$policy"
    fi
}

install_packages() {
    if [ "$(id -u)" -ne 0 ]; then
        say "only root can install what is missing:" "$@" >&2
        exit 1
    fi
    say "installing" "$@"
    trap restore_policy EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    # one that an interrupted run has saved is the true one
    if [ ! -e "$policy.virt-dmem-saved" ] && { [ -e "$policy" ] || [ -L "$policy" ]; }; then
        mv "$policy" "$policy.virt-dmem-saved"
    fi
    printf '#!/bin/sh\n# of virt-dmem: tests/rig/setup.sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get -q update
    quietly apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-confold install "$@"
    restore_policy
    trap - EXIT INT TERM HUP
    if [ -d /run/systemd/system ]; then
        say "no service was started now; those of libvirt are enabled for the next boot"
    fi
}

# What .venv was made for; it is made anew when that changes.
stamp_now() {
    /usr/bin/python3 -V
    pkg-config --modversion libvirt
    echo "$venv" # its scripts name their interpreter by path
    cksum pyproject.toml hatch_build.py virt_dmem/native/build.py virt_dmem/native/prefault.c
}

make_venv() {
    say "making .venv (libvirt-python is compiled; a minute at most)"
    quietly /usr/bin/python3 -m venv --clear "$venv"
    quietly "$venv/bin/python" -m pip install --quiet --editable '.[dev]'
    stamp_now >"$venv/.virt-dmem-stamp"
}

missing=$(missing_packages)
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086 # a list
    install_packages $missing
fi

if [ "$(stamp_now)" != "$(cat "$venv/.virt-dmem-stamp" 2>/dev/null)" ]; then
    make_venv
fi
if [ ! -x virt_dmem/native/virt-dmem-prefault ]; then
    quietly "$venv/bin/python" -m virt_dmem.native.build
fi
if [ ! -d "$cache/guest/kernel" ]; then
    say "fetching the test guest's kernel"
    quietly "$venv/bin/python" -m tests.rig.guest
fi
say "ready"
