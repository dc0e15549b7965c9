#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Remove what install.sh installed, and nothing else. State in /var/lib/virt-dmem and a modified configuration stay.
# Rejected while a domain uses pool memory: it could not be started any more.

set -eu

dest=${DESTDIR:-}
prefix=${PREFIX:-/usr}
manifest=$dest$prefix/lib/virt-dmem/manifest

if [ ! -e "$manifest" ]; then
    echo "uninstall: nothing is installed in $dest$prefix"
    exit 0
fi
[ -n "$dest" ] || [ "$(id -u)" -eq 0 ] || {
    echo "uninstall: only root can uninstall on this host" >&2
    exit 1
}

export DESTDIR="$dest"
integrate=$dest$prefix/lib/virt-dmem/integrate
"$integrate" removable || exit 1
"$integrate" disconnect

if [ -z "$dest" ] && [ -d /run/systemd/system ]; then
    systemctl disable --now --quiet virt-dmemd.service virt-dmemd.socket virt-dmem-pages.socket
    systemctl stop --quiet virt-dmem-pages.service
fi

module=$prefix/lib/virt-dmem/module
if [ -z "$dest" ] && [ -x "$module" ]; then
    "$module" remove | sed 's/^/uninstall: /'
fi

sed -n 's/^F //p' "$manifest" | while read -r path; do
    rm -f "$dest$path"
done
sed -n 's/^T //p' "$manifest" | while read -r path; do
    case $path in
    "$prefix"/lib/virt-dmem/python*) rm -rf "$dest$path" ;;
    esac
done
sed -n 's/^C //p' "$manifest" | while read -r path sum; do
    [ -e "$dest$path" ] || continue
    if [ "$(cksum <"$dest$path")" = "$sum" ]; then
        rm -f "$dest$path"
    else
        echo "uninstall: $path was modified and is kept"
    fi
done
directories=$(sed -n 's/^D //p' "$manifest" | sort -r)
rm -f "$manifest"
echo "$directories" | while read -r path; do
    rmdir "$dest$path" 2>/dev/null || true # it contains files of others
done

[ -z "$dest" ] || exit 0
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
for record in /var/lib/virt-dmem/pools/*.json; do
    [ -e "$record" ] || continue
    echo "uninstall: pool $(basename "$record" .json) keeps its memory; to free it, install again and destroy the pool"
done
echo "uninstall: done; /var/lib/virt-dmem and the group virt-dmem are kept"
