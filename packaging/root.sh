# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
#
# The roots of Debian releases that deb.sh builds packages in and repo.sh indexes them in.

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
