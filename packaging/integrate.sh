#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Integrate an installed virt-dmem with this host's libvirt.
#
#   integrate connect      put libvirt's hook to its place, and add the lines that the manifest names to files of
#                          others; say "changed" unless the hook was there
#   integrate reload       have a libvirt that runs look for hooks: it does so when it starts, and then
#   integrate disconnect   take hook and lines away again
#   integrate applied      list the domains whose XML takes memory from pools
#   integrate holding      list the domains that have memory from a pool now, whatever their XML says
#   integrate removable    fail, and name all these domains, if there are any
#   integrate needs-line   tell whether the AppArmor rules of this host's libvirt have to be made to include ours
#   integrate line         print the line of the manifest for that
#
# With DESTDIR, below that directory. The hook is a regular file, moved in from another directory, because libvirt runs
# every executable in qemu.d: also one that a package manager unpacks there (*.dpkg-new) or an editor leaves.

set -eu

dest=${DESTDIR:-}
prefix=@PREFIX@
manifest=${MANIFEST:-$dest$prefix/lib/virt-dmem/manifest}
hooks=$dest/etc/libvirt/hooks
local=/etc/apparmor.d/local/abstractions/libvirt-qemu
line='include if exists <abstractions/libvirt-qemu.d/virt-dmem>' # else no guest starts once it is removed

connect() {
    sed -n 's/^L //p' "$manifest" | while read -r path text; do
        mkdir -p "$(dirname "$dest$path")"
        grep -qsxF "$text" "$dest$path" && continue
        [ -z "$(tail -c 1 "$dest$path" 2>/dev/null)" ] || echo >>"$dest$path" # its last line has no end
        echo "$text" >>"$dest$path"
    done
    mkdir -p "$hooks/qemu.d"
    for shipped in "$dest$prefix"/lib/virt-dmem/python*/virt_dmem/hooks/qemu.d/50-virt-dmem; do
        sed "s|@PREFIX""@|$prefix|g" "$shipped" >"$hooks/.virt-dmem-new"
    done
    chmod 0755 "$hooks/.virt-dmem-new"
    if cmp -s "$hooks/.virt-dmem-new" "$hooks/qemu.d/50-virt-dmem" && [ -x "$hooks/qemu.d/50-virt-dmem" ]; then
        rm "$hooks/.virt-dmem-new"
    else
        mv -f "$hooks/.virt-dmem-new" "$hooks/qemu.d/50-virt-dmem"
        echo changed
    fi
}

reload() { # guests are not affected
    [ -z "$dest" ] && [ -d /run/systemd/system ] || return 0
    for daemon in libvirtd virtqemud; do
        ! systemctl --quiet is-active "$daemon.service" || systemctl reload-or-restart "$daemon.service" || return 0
    done
    mkdir -p /run/virt-dmem
    touch /run/virt-dmem/libvirt-reloaded # for 'virt-dmem check'
}

disconnect() {
    rm -f "$hooks/qemu.d/50-virt-dmem"
    rmdir "$hooks/qemu.d" 2>/dev/null || true
    sed -n 's/^L //p' "$manifest" 2>/dev/null | while read -r path text; do
        [ -e "$dest$path" ] || continue
        if grep -vxF "$text" "$dest$path" >"$dest$path.virt-dmem-new" || [ $? -eq 1 ]; then # else the disk is full
            cat "$dest$path.virt-dmem-new" >"$dest$path"
        fi
        rm -f "$dest$path.virt-dmem-new"
    done
}

# Ask libvirt; if it does not answer, search its files. Transient running domains are found only in these.
applied() {
    if [ -z "$dest" ] && answer=$("$prefix/bin/virt-dmem" list --applied --json 2>/dev/null); then
        printf '%s' "$answer" | /usr/bin/python3 -IS -c '
import json, sys
for domain in json.load(sys.stdin)["domains"]:
    print(domain["name"])'
        set -- "$dest"/run/libvirt/qemu/*.xml
    else
        set -- "$dest"/etc/libvirt/qemu/*.xml "$dest"/run/libvirt/qemu/*.xml
    fi
    for file in "$@"; do
        if grep -qs 'https://virt-dmem.dev/xmlns/domain/1.0' "$file"; then
            basename "$file" .xml
        fi
    done
}

# Rules take domains whose XML does not tell, and one that was unapplied keeps its memory until it ends. Ask the
# daemon; if it does not answer, look for files in pools whose domain runs.
holding() {
    if [ -z "$dest" ] && "$prefix/bin/virt-dmem" list --no-headings --output NAME 2>/dev/null; then
        return
    fi
    for directory in "$dest"/run/virt-dmem/pools/*/libvirt-*; do
        if [ -n "$(ls -A "$directory" 2>/dev/null)" ]; then
            grep -ls "<uuid>${directory##*/libvirt-}</uuid>" "$dest"/run/libvirt/qemu/*.xml || true
        fi
    done | sed 's|.*/||; s|\.xml$||'
}

removable() {
    applied=$(applied | sort -u)
    holding=$(holding | sort -u)
    [ -n "$applied$holding" ] || return 0
    {
        echo "virt-dmem is not removed, because these domains use memory from its pools:"
        printf '%s\n%s\n' "$applied" "$holding" | sort -u | sed '/^$/d; s/^/    /'
        [ -z "$applied" ] || echo "Run 'virt-dmem unapply DOMAIN' for those that 'virt-dmem list --applied' lists."
        [ -z "$holding" ] || echo "Shut down, or migrate to another host, those that 'virt-dmem list' lists."
        echo "Then try again."
    } >&2
    return 1
}

needs_line() { # libvirt 9.0 (Debian 12) does not include libvirt-qemu.d by itself
    abstraction=$dest/etc/apparmor.d/abstractions/libvirt-qemu
    [ -e "$abstraction" ] && ! grep -q 'abstractions/libvirt-qemu\.d>' "$abstraction"
}

case ${1:-} in
connect) connect ;;
reload) reload ;;
disconnect) disconnect ;;
applied) applied | sort -u ;;
holding) holding | sort -u ;;
removable) removable ;;
needs-line) needs_line ;;
line) echo "L $local $line" ;;
*)
    echo "usage: $0 connect | reload | disconnect | applied | holding | removable | needs-line | line" >&2
    exit 2
    ;;
esac
