#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Install on this host, or below DESTDIR to build a package. A repeated run replaces the earlier installation.
# The manifest records the installed files for uninstall.sh, and digests of those that virt-dmemd watches. Requires
# 'make setup' first, and no network.

set -eu

cd "$(dirname "$0")/.."
dest=${DESTDIR:-}
prefix=${PREFIX:-/usr}
python=$PWD/.venv/bin/python
lib=$prefix/lib/virt-dmem
manifest=$dest$lib/manifest

die() {
    echo "install: $*" >&2
    exit 1
}

[ -n "$dest" ] || [ "$(id -u)" -eq 0 ] || die "only root can install on this host"
if [ ! -x "$python" ] || [ ! -d .cache/wheels ]; then
    die "run 'make setup' first"
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

# The manifest lists directories that this or an earlier installation created: only those are removed again.
directory() { # MODE PATH
    if [ ! -d "$dest$2" ]; then
        directory 0755 "$(dirname "$2")"
        install -d -m "$1" "$dest$2"
        echo "D $2" >>"$work/manifest"
    elif grep -qsxF "D $2" "$manifest"; then
        directory 0755 "$(dirname "$2")"
        grep -qxF "D $2" "$work/manifest" || echo "D $2" >>"$work/manifest"
    fi
}

place() { # MODE SOURCE PATH: atomically, so that nobody reads a partial file
    directory 0755 "$(dirname "$3")"
    new=$dest$(dirname "$(dirname "$3")")/.virt-dmem-new
    install -m "$1" "$2" "$new"
    mv -f "$new" "$dest$3"
    echo "F $3" >>"$work/manifest"
    case $3 in
    /etc/libvirt/* | /etc/apparmor.d/* | */bin/* | */sbin/* | */systemd/system/*)
        echo "H $(sha256sum <"$2" | cut -d ' ' -f 1) $3" >>"$work/manifest"
        ;;
    esac
}

put() { # MODE SOURCE PATH: a text file, with its placeholders filled in
    sed "s|@PREFIX@|$prefix|g; s|@PYTHON@|$tag|g; s|@VERSION@|$version|g" "$2" >"$work/file"
    place "$1" "$work/file" "$3"
}

launcher() { # MODULE PATH
    sed "s|@MODULE@|$1|" packaging/launcher.in >"$work/launcher"
    put 0755 "$work/launcher" "$2"
}

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

launcher virt_dmem.cli.main "$prefix/bin/virt-dmem"
launcher virt_dmem.daemon.main "$prefix/sbin/virt-dmemd"

# -- the dmemfs module: its sources, and the script that builds them for a kernel
if [ -e kernel/Kbuild ]; then
    src=$prefix/src/virt-dmem-$version
    find kernel -type f \( -name '*.[ch]' -o -name Kbuild -o -name Makefile \) ! -name '*.mod.c' \
        ! -path 'kernel/tests/*' | sort >"$work/sources"
    while read -r file; do
        put 0644 "$file" "$src/${file#kernel/}"
    done <"$work/sources"
    put 0644 packaging/dkms.conf "$src/dkms.conf"
    put 0755 packaging/module.sh "$lib/module"
fi

# -- for systemd
for unit in virt-dmemd.service virt-dmemd.socket virt-dmem-pool@.service; do
    put 0644 "systemd/$unit" "$prefix/lib/systemd/system/$unit"
done
put 0644 systemd/sysusers.conf "$prefix/lib/sysusers.d/virt-dmem.conf"
put 0644 systemd/tmpfiles.conf "$prefix/lib/tmpfiles.d/virt-dmem.conf"

# -- the configuration: a modified one belongs to the administrator
directory 0755 /etc/virt-dmem
directory 0755 /etc/virt-dmem/conf.d
directory 0755 /etc/virt-dmem/templates
config=/etc/virt-dmem/virt-dmem.toml
sum=$(cksum <packaging/virt-dmem.toml)
if [ ! -e "$dest$config" ] || grep -qsxF "C $config $(cksum <"$dest$config")" "$manifest"; then
    install -m 0644 packaging/virt-dmem.toml "$dest$config"
    echo "C $config $sum" >>"$work/manifest"
else
    echo "install: $config was modified and is kept; the new version is in $prefix/share/doc/virt-dmem"
    grep -s "^C $config " "$manifest" >>"$work/manifest" || true
fi
put 0644 packaging/virt-dmem.toml "$prefix/share/doc/virt-dmem/virt-dmem.toml"
put 0644 README.md "$prefix/share/doc/virt-dmem/README.md"
put 0644 docs/reference/prometheus-rules.yml "$prefix/share/doc/virt-dmem/prometheus-rules.yml"
for page in docs/man/*.[1-8]; do
    [ -e "$page" ] || continue
    put 0644 "$page" "$prefix/share/man/man${page##*.}/${page##*/}"
done
for document in json.md errors.md virt-dmem.schema.json; do
    put 0644 "docs/reference/$document" "$prefix/share/doc/virt-dmem/$document"
done
for shell in bash zsh; do
    "$python" -m virt_dmem.cli.main completion "$shell" >"$work/$shell"
done
put 0644 "$work/bash" "$prefix/share/bash-completion/completions/virt-dmem"
put 0644 "$work/zsh" "$prefix/share/zsh/site-functions/_virt-dmem"

# -- AppArmor: allow QEMU to access its own domain's extents
rule=/etc/apparmor.d/abstractions/libvirt-qemu.d/virt-dmem
put 0644 packaging/apparmor.conf "$rule"
abstraction=$dest/etc/apparmor.d/abstractions/libvirt-qemu
local=/etc/apparmor.d/local/abstractions/libvirt-qemu
line='include if exists <abstractions/libvirt-qemu.d/virt-dmem>' # else no guest starts once it is removed
# libvirt 9.0 (Debian 12) does not include libvirt-qemu.d by itself
if [ -e "$abstraction" ] && ! grep -q 'abstractions/libvirt-qemu\.d>' "$abstraction"; then
    directory 0755 "$(dirname "$local")"
    grep -qsxF "$line" "$dest$local" || echo "$line" >>"$dest$local"
    echo "L $local $line" >>"$work/manifest"
fi

# -- the hook, last: from here on domains with virt-dmem metadata need all the rest. A regular file, moved in from
#    another directory, because libvirt runs every executable in qemu.d. And its program: AppArmor may confine
#    libvirtd to /usr/bin.
hooks=/etc/libvirt/hooks
first=yes
for hook in "$dest$hooks/qemu" "$dest$hooks"/qemu.d/*; do
    [ ! -x "$hook" ] || first=
done
place 0755 "$dest$site/virt_dmem/native/virt-dmem-hook" "$prefix/bin/virt-dmem-hook"
put 0755 hooks/qemu.d/50-virt-dmem "$hooks/qemu.d/50-virt-dmem"

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

[ -z "$dest" ] || exit 0

[ ! -e "$lib/module" ] || "$lib/module" build | sed 's/^/install: /'

if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers "$prefix/lib/sysusers.d/virt-dmem.conf"
    systemd-tmpfiles --create "$prefix/lib/tmpfiles.d/virt-dmem.conf"
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable --quiet virt-dmemd.service # and its socket
    systemctl start virt-dmemd.socket
    systemctl restart virt-dmemd.service # does not affect running guests
else
    echo "install: systemd is not running; start $prefix/sbin/virt-dmemd by other means"
fi
if [ "$prefix" != /usr ] && [ -e /etc/apparmor.d/usr.sbin.libvirtd ]; then
    echo "install: AppArmor may keep libvirtd from running programs in $prefix/bin; 'virt-dmem check' tells"
fi
if [ -n "$first" ]; then
    echo "install: libvirt looks for hooks when it starts. If it is running already, reload it (guests keep running):"
    echo "install:     systemctl try-reload-or-restart libvirtd.service    (or virtqemud.service)"
fi
