# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
#
# What deb.sh and repo.sh share: the roots of Debian releases that they work in, and the archive of this tree.

tools="lintian apt-utils gnupg"

root() { # RELEASE: the path of its root, which changes with what has to be in it
    echo "$PWD/.cache/packages/$1-$({ echo "$tools" && sed -n '/^Build-/,/^Standards/{/^Standards/!p}' packaging/debian/control; } | sha256sum | cut -c 1-16)"
}

in_root() { # ROOT SHARED SCRIPT: run it there, on a layer in memory, without a network; SHARED is /share there
    # shellcheck disable=SC2016 # it is run with these as its arguments
    unshare --mount --propagation private --net --uts --ipc --pid --fork --kill-child sh -ec '
        layer=$(mktemp -d)
        mount -t tmpfs -o size=3g layer "$layer"
        mkdir "$layer/upper" "$layer/work" "$layer/root"
        mount -t overlay -o "lowerdir=$0,upperdir=$layer/upper,workdir=$layer/work" root "$layer/root"
        mkdir -p "$layer/root/share"
        mount --bind "$1" "$layer/root/share"
        mount -t proc proc "$layer/root/proc"
        mount --rbind /dev "$layer/root/dev"
        mount -t tmpfs run "$layer/root/run"
        status=0
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root DEBIAN_FRONTEND=noninteractive \
            chroot "$layer/root" /bin/sh -ec "$2" || status=$?
        umount -R -l "$layer"
        rmdir "$layer"
        exit $status
    ' "$1" "$2" "$3"
}

mirror() { # this host's, or Debian's own
    cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        sed -nE 's#^(URIs:|deb( +\[[^]]*\])?) +([^ ]+/debian)/?( .*)?$#\3#p' | head -n 1 | grep . || echo http://deb.debian.org/debian
}

source_tree() { # VERSION DIRECTORY: write the archive of this tree there, the same bytes from the same files
    date=$(sed -n 's/^ -- .*>  //p' packaging/debian/changelog | head -n 1)
    mkdir -p "$2/tree/virt-dmem-$1"
    git ls-files --cached --others --exclude-standard | while read -r file; do
        [ ! -f "$file" ] || echo "$file"
    done >"$2/files"
    tar -c --files-from="$2/files" | tar -x -C "$2/tree/virt-dmem-$1"
    git describe --always --dirty --exclude='*' >"$2/tree/virt-dmem-$1/virt_dmem/commit"
    chmod -R u=rwX,go=rX "$2/tree"
    tar -c -C "$2/tree" --sort=name --owner=0 --group=0 --numeric-owner --mtime="$date" "virt-dmem-$1" |
        xz -T1 -6 >"$2/virt-dmem_$1.orig.tar.xz"
    rm "$2/files"
}
