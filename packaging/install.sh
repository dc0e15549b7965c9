#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Install on this host, or below DESTDIR to build a package. A repeated run replaces the earlier installation.
# The manifest records the installed files for uninstall.sh, and digests of those that virt-dmemd watches. Requires
# 'packaging/setup.sh install' first, which 'make install' runs, and no network.

set -eu

cd "$(dirname "$0")/.."
dest=${DESTDIR:-}
prefix=${PREFIX:-/usr}
python=$PWD/.venv/bin/python
lib=$prefix/lib/virt-dmem
manifest=$dest$lib/manifest

say() {
    echo "install: $*"
}

die() {
    say "$*" >&2
    exit 1
}

[ -n "$dest" ] || [ "$(id -u)" -eq 0 ] || die "only root can install on this host"
if [ ! -x "$python" ] || [ ! -d .cache/wheels ]; then
    die "run 'packaging/setup.sh install' first"
fi
case $dest$prefix in
*[!A-Za-z0-9_./+~-]*) die "DESTDIR and PREFIX must be plain paths: letters, digits and _ . / + ~ -" ;;
esac

[ -z "$dest" ] || mkdir -p "$dest"
work=$(mktemp -d)
new=
trap 'rm -rf "$work" ${new:+"$new"}' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
: >"$work/manifest"

. packaging/layout.sh

# -- the package and its dependencies, for /usr/bin/python3 only, separate from the system's Python packages
tag=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
site=$lib/$tag
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' virt_dmem/__init__.py)
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/wheels" .
"$python" -m pip install --quiet --no-index --find-links "$work/wheels" --find-links .cache/wheels \
    --no-compile --root-user-action ignore --target "$work/site" virt-dmem
rm -rf "$work/site/bin"
"$python" -m compileall -q -s "$work/site" -p "$site" "$work/site" || die "the package does not compile"
directory 0755 "$lib"
rm -rf "$dest$lib/.new"
cp -R "$work/site" "$dest$lib/.new"
chmod -R u=rwX,go=rX "$dest$lib/.new"
rm -rf "$dest$lib"/python*
mv "$dest$lib/.new" "$dest$site"
echo "T $site" >>"$work/manifest"

directories="[\"$lib/python%d.%d\" % sys.version_info[:2]]"
launcher virt_dmem.cli.main "$prefix/bin/virt-dmem" "$directories" "$tag"
launcher virt_dmem.daemon.main "$prefix/sbin/virt-dmemd" "$directories" "$tag"
launcher virt_dmem.page_service.main "$lib/pages" "$directories" "$tag"

put_module
put_files "$prefix/lib/systemd/system" "$python"

# -- the configuration: a modified one belongs to the administrator
config=/etc/virt-dmem/virt-dmem.toml
sum=$(cksum <packaging/virt-dmem.toml)
if [ ! -e "$dest$config" ] || grep -qsxF "C $config $(cksum <"$dest$config")" "$manifest"; then
    install -m 0644 packaging/virt-dmem.toml "$dest$config"
    echo "C $config $sum" >>"$work/manifest"
else
    say "$config was modified and is kept; the new version is in $prefix/share/doc/virt-dmem"
    grep -s "^C $config " "$manifest" >>"$work/manifest" || true
fi

# -- the hook and its program, last: from here on domains with virt-dmem metadata need all the rest. AppArmor may
#    confine libvirtd to programs in /usr/bin.
place 0755 "$dest$site/virt_dmem/native/virt-dmem-hook" "$prefix/bin/virt-dmem-hook"
hook=/etc/libvirt/hooks/qemu.d/50-virt-dmem
directory 0755 "${hook%/*}"
export DESTDIR="$dest" MANIFEST="$work/manifest"
if "$dest$lib/integrate" needs-line; then
    line=$("$dest$lib/integrate" line)
    path=${line#L }
    directory 0755 "$(dirname "${path%% *}")"
    echo "$line" >>"$work/manifest"
fi
changed=$("$dest$lib/integrate" connect)
echo "F $hook" >>"$work/manifest"
digest "$dest$hook" "$hook"

# -- remove what an earlier version installed and this one does not
if [ -e "$manifest" ]; then
    sed -n 's/^F //p' "$manifest" | sort >"$work/old"
    sed -n 's/^F //p' "$work/manifest" | sort >"$work/kept"
    comm -23 "$work/old" "$work/kept" | while read -r path; do
        rm -f "$dest$path"
    done
    sed -n 's/^D //p' "$manifest" | sort >"$work/old"
    sed -n 's/^D //p' "$work/manifest" | sort >"$work/kept"
    comm -23 "$work/old" "$work/kept" | sort -r | while read -r path; do # subdirectories first
        rmdir "$dest$path" 2>/dev/null || true
    done
fi
install -m 0644 "$work/manifest" "$manifest.new"
mv -f "$manifest.new" "$manifest"

entry() { # COMMAND PURPOSE
    printf 'install:     %-50s %s\n' "$1" "$2"
}

say "virt-dmem $version is installed${dest:+ in $dest}:"
entry "$prefix/bin/virt-dmem" "the command"
entry "$prefix/sbin/virt-dmemd" "the daemon"
entry "$hook" "the hook of libvirt"
entry "$config" "the configuration, which sets nothing as it comes"
entry "$prefix/share/doc/virt-dmem" "guides and reference; manual pages: man virt-dmem"
entry "$lib/manifest" "the list of all files"

if [ -n "$dest" ]; then
    say "nothing was started, and no libvirt reloaded"
    exit 0
fi

[ ! -e "$lib/module" ] || "$lib/module" build | sed 's/^/install: /'

if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers "$prefix/lib/sysusers.d/virt-dmem.conf"
    systemd-tmpfiles --create "$prefix/lib/tmpfiles.d/virt-dmem.conf"
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable --quiet virt-dmemd.service # and its socket
    systemctl enable --quiet virt-dmem-pages.socket
    systemctl start virt-dmemd.socket virt-dmem-pages.socket
    systemctl restart virt-dmemd.service # does not affect running guests
    say "virt-dmemd runs, and starts at boot"
else
    say "systemd is not running; start $prefix/sbin/virt-dmemd by other means"
fi
if [ "$prefix" != /usr ] && [ -e /etc/apparmor.d/usr.sbin.libvirtd ]; then
    say "AppArmor may keep libvirtd from running programs in $prefix/bin; 'virt-dmem check' tells"
fi
say "next:"
if [ -n "$changed" ]; then
    libvirt=libvirtd.service
    ! systemctl --quiet is-active virtqemud.service 2>/dev/null || libvirt=virtqemud.service
    entry "systemctl try-reload-or-restart $libvirt" "a running libvirt finds the hook; guests go on"
fi
entry "virt-dmem check" "see what this host has and lacks"
entry "virt-dmem pool create guests --size SIZE" "make a first pool"
entry "make uninstall" "take all of it away again"
