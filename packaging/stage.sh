#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stage the files of a package below DESTDIR, from a source tree whose C programs are built
# (python3 -m virt_dmem.native.build). Nothing is downloaded, and no file of this host is read.
#
#   stage.sh product     all but the sources of the kernel module. SHARED: the directories of the distribution's Python
#                        modules; BUNDLED: a directory of Python modules that it lacks, empty: it has all; UNITS: the
#                        directory of systemd's units
#   stage.sh module      the sources of the kernel module, without dkms.conf if DKMS_CONF=no
#   stage.sh manifest    at the end, when the programs are stripped: digests of the files that virt-dmemd watches; with
#                        LOCAL_APPARMOR=yes for libvirt 9.0, whose rules have to be made to include ours
#
# The configuration is not staged here, as each kind of package has its own way with it, and neither is the hook:
# 'integrate connect' creates it when the package is installed.

set -eu

cd "$(dirname "$0")/.."
dest=${DESTDIR:?}
prefix=${PREFIX:-/usr}
python=${PYTHON:-/usr/bin/python3}
lib=$prefix/lib/virt-dmem
site=$lib/python3
manifest=$dest$lib/manifest
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' virt_dmem/__init__.py)
work=$(mktemp -d)
new=
trap 'rm -rf "$work" ${new:+"$new"}' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
: >"$work/manifest"
mkdir -p "$dest"

. packaging/layout.sh

product() {
    native=$site/virt_dmem/native
    directory 0755 "$site"
    find virt_dmem -type f \( -name '*.py' -o -name commit \) | tar -c --files-from=- | tar -x --no-same-owner -C "$dest$site"
    chmod -R u=rwX,go=rX "$dest$site"
    place 0644 xml-templates/memory-backing.xml "$site/virt_dmem/xml-templates/memory-backing.xml"
    place 0644 xml-templates/request.xsl "$site/virt_dmem/xml-templates/request.xsl"
    place 0755 hooks/qemu.d/50-virt-dmem "$site/virt_dmem/hooks/qemu.d/50-virt-dmem"
    place 0755 virt_dmem/native/virt-dmem-prefault "$native/virt-dmem-prefault"
    place 0755 virt_dmem/native/virt-dmem-hook "$prefix/bin/virt-dmem-hook"
    ln -sfr "$dest$prefix/bin/virt-dmem-hook" "$dest$native/virt-dmem-hook"
    if [ -n "${BUNDLED:-}" ]; then
        cp -R "$BUNDLED/." "$dest$site"
        find "$dest$site" -name __pycache__ -prune -exec rm -rf {} +
        chmod -R u=rwX,go=rX "$dest$site"
    fi
    directories="[\"$site\"$(for path in ${SHARED:-/usr/lib/python3/dist-packages}; do printf ', "%s"' "$path"; done)]"
    launcher virt_dmem.cli.main "$prefix/bin/virt-dmem" "$directories" "Python 3"
    launcher virt_dmem.daemon.main "$prefix/sbin/virt-dmemd" "$directories" "Python 3"
    launcher virt_dmem.page_service.main "$lib/pages" "$directories" "Python 3"
    put_files "${UNITS:-$prefix/lib/systemd/system}" env "PYTHONPATH=$dest$site" PYTHONDONTWRITEBYTECODE=1 "$python"
}

record() { # DIRECTORY...: digests of the files below
    for directory in "$@"; do
        find "$dest$directory" -type f 2>/dev/null | sort | while read -r file; do
            digest "$file" "${file#"$dest"}"
        done
    done
}

case ${1:-} in
product) product ;;
module)
    put_module
    [ "${DKMS_CONF:-yes}" = yes ] || rm "$dest$prefix/src/virt-dmem-$version/dkms.conf"
    ;;
manifest)
    fill_in hooks/qemu.d/50-virt-dmem
    digest "$work/file" /etc/libvirt/hooks/qemu.d/50-virt-dmem
    record /etc/apparmor.d "$prefix/bin" "$prefix/sbin" "${UNITS:-$prefix/lib/systemd/system}"
    [ "${LOCAL_APPARMOR:-}" != yes ] || packaging/integrate.sh line >>"$work/manifest"
    install -m 0644 "$work/manifest" "$manifest"
    ;;
*)
    echo "usage: DESTDIR=DIRECTORY $0 product | module | manifest" >&2
    exit 2
    ;;
esac
