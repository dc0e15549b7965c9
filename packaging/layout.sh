# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh disable=SC2154 # whoever reads it sets: dest prefix lib version work manifest
#
# The layout of an installation, for install.sh ('make install') and stage.sh (packages): functions that put each file
# to its place below $dest, and record it in $work/manifest.

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
    /etc/libvirt/* | /etc/apparmor.d/* | */bin/* | */sbin/* | */systemd/system/*) digest "$2" "$3" ;;
    esac
}

digest() { # SOURCE PATH: record what the file at PATH has to be
    echo "H $(sha256sum <"$1" | cut -d ' ' -f 1) $2" >>"$work/manifest"
}

fill_in() { # SOURCE: write it to $work/file with its placeholders filled in
    sed "s|@PREFIX@|$prefix|g; s|@VERSION@|$version|g; s|#MODULE_VERSION#|$version|g" "$1" >"$work/file"
}

put() { # MODE SOURCE PATH: a text file
    fill_in "$2"
    place "$1" "$work/file" "$3"
}

launcher() { # MODULE PATH DIRECTORIES PYTHON: a program of MODULE, found in Python's list of DIRECTORIES
    sed "s|@MODULE@|$1|; s|@DIRECTORIES@|$3|; s|@PYTHON@|$4|" packaging/launcher.in >"$work/launcher"
    put 0755 "$work/launcher" "$2"
}

# The sources of the dmemfs module, and the script that builds them for a kernel.
put_module() {
    src=$prefix/src/virt-dmem-$version
    find kernel -type f \( -name '*.[ch]' -o -name Kbuild -o -name Makefile \) ! -name '*.mod.c' \
        ! -path 'kernel/tests/*' | sort >"$work/sources"
    while read -r file; do
        put 0644 "$file" "$src/${file#kernel/}"
    done <"$work/sources"
    put 0644 packaging/dkms.conf "$src/dkms.conf"
    put 0755 packaging/module.sh "$lib/module"
}

# All that is not Python, but the configuration, the hook and its program. PYTHON... is the command that has virt_dmem.
put_files() { # UNIT_DIRECTORY PYTHON...
    units=$1
    shift
    for unit in virt-dmemd.service virt-dmemd.socket virt-dmem-pages.service virt-dmem-pages.socket \
        virt-dmem-pool@.service; do
        put 0644 "systemd/$unit" "$units/$unit"
    done
    put 0644 systemd/sysusers.conf "$prefix/lib/sysusers.d/virt-dmem.conf"
    put 0644 systemd/tmpfiles.conf "$prefix/lib/tmpfiles.d/virt-dmem.conf"

    directory 0755 /etc/virt-dmem
    directory 0755 /etc/virt-dmem/conf.d
    directory 0755 /etc/virt-dmem/templates
    put 0644 packaging/virt-dmem.toml "$prefix/share/doc/virt-dmem/virt-dmem.toml"
    "$@" docs/installed.py "$work/documents"
    (cd "$work/documents" && find . -type f) | sort >"$work/list"
    while read -r file; do
        place 0644 "$work/documents/$file" "$prefix/share/doc/virt-dmem/${file#./}"
    done <"$work/list"
    for page in docs/man/*.[1-8]; do
        put 0644 "$page" "$prefix/share/man/man${page##*.}/${page##*/}"
    done
    for shell in bash zsh; do
        "$@" -m virt_dmem.cli.main completion "$shell" >"$work/$shell"
    done
    put 0644 "$work/bash" "$prefix/share/bash-completion/completions/virt-dmem"
    put 0644 "$work/zsh" "$prefix/share/zsh/site-functions/_virt-dmem"

    # AppArmor: allow QEMU to access its own domain's extents
    put 0644 packaging/apparmor.conf /etc/apparmor.d/abstractions/libvirt-qemu.d/virt-dmem
    put 0755 packaging/integrate.sh "$lib/integrate"
}
