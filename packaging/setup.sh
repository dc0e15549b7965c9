#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Prepare a Debian 12 or 13 machine. Existing parts are kept, so a second run takes a moment and needs no network.
#
#   setup.sh install    for 'make install': compiler and headers, and a .venv with what virt-dmem imports
#   setup.sh tests      for development, that and more: libvirt, QEMU, the tools of tests, the test guest's kernel
#
# Installing the packages starts no service: policy-rc.d denies it while apt runs. (With systemd, the units of a
# libvirt that is installed here are enabled nevertheless, and start at the next boot.)

set -eu

packages="
    gcc libc6-dev libjson-c-dev make pkg-config
    python3 python3-dev python3-venv libvirt-dev
"
test_packages="
    busybox-static cpio dpkg git xz-utils mount apparmor shellcheck man-db
    libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system
    qemu-system-x86 qemu-utils mmdebstrap e2fsprogs strace systemd-container zsh
"

purpose=${1:-}
case $purpose in
install)
    stamps=".virt-dmem-stamp-install .virt-dmem-stamp" # that of tests has all of it
    extras=
    ;;
tests)
    packages="$packages $test_packages"
    stamps=.virt-dmem-stamp
    extras='[dev]'
    ;;
*)
    echo "usage: $0 install | tests" >&2
    exit 2
    ;;
esac

cd "$(dirname "$0")/.."
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
mark='# for the time of virt-dmem: packaging/setup.sh'

restore_policy() {
    # only this script's: an interrupted run may have got no further than saving, or have been killed
    if grep -qsF "$mark" "$policy"; then
        rm -f "$policy"
    fi
    if [ -e "$policy.virt-dmem-saved" ] || [ -L "$policy.virt-dmem-saved" ]; then
        mv -f "$policy.virt-dmem-saved" "$policy"
    fi
}

install_packages() {
    if [ "$(id -u)" -ne 0 ]; then
        say "only root can install the missing packages:" "$@" >&2
        exit 1
    fi
    say "installing" "$@"
    trap restore_policy EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    if [ -e "$policy" ] || [ -L "$policy" ]; then
        mv "$policy" "$policy.virt-dmem-saved"
    fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get -q -o DPkg::Lock::Timeout=300 update
    quietly apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 \
        -o Dpkg::Options::=--force-confold install "$@"
    restore_policy
    trap - EXIT INT TERM HUP
    if [ "$purpose" = tests ] && [ -d /run/systemd/system ]; then
        say "no service was started; those of libvirt are enabled for the next boot"
    fi
}

# The inputs of .venv, which is created anew when one of them changes.
stamp_now() {
    /usr/bin/python3 -V
    pkg-config --modversion libvirt
    echo "$venv" # its scripts name their interpreter by path
    cksum pyproject.toml
}

venv_is_current() {
    for stamp in $stamps; do
        if [ "$(stamp_now)" = "$(cat "$venv/$stamp" 2>/dev/null)" ]; then
            return 0
        fi
    done
    return 1
}

make_venv() {
    say "creating .venv (libvirt-python is compiled; up to a minute)"
    rm -rf "$cache/wheels"
    quietly /usr/bin/python3 -m venv --clear "$venv"
    # The wheels are kept for 'make install', including those of the build backend.
    quietly "$venv/bin/python" -m pip wheel --quiet --wheel-dir "$cache/wheels" ".$extras" hatchling editables
    rm -f "$cache"/wheels/virt_dmem-*
    quietly "$venv/bin/python" -m pip install --quiet --no-index --find-links "$cache/wheels" \
        --editable ".$extras" hatchling editables
    stamp_now >"$venv/${stamps%% *}"
}

restore_policy # of a run that was killed
missing=$(missing_packages)
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086 # a list
    install_packages $missing
fi

if ! venv_is_current; then
    make_venv
fi
if [ "$purpose" = tests ] && [ ! -d "$cache/guest/kernel" ]; then
    say "fetching the test guest's kernel"
    quietly "$venv/bin/python" -m tests.rig.guest
fi
say "done"
