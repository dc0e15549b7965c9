# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
#
# What deb.sh, rpm.sh and repo.sh share: the roots of Debian releases that they work in, and the archive of this tree.
# Their temporary files are below $scratch, which is gone when they end, also when they fail or are interrupted.

scratch=$(mktemp -d)
inside= # the process that enters a root, while there is one
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

clean_up() {
    if [ -n "$inside" ]; then
        # with its init, its only child, all in there ends; it waits for that itself
        kill -KILL "$(cat "/proc/$inside/task/$inside/children")" 2>/dev/null || kill -KILL "$inside" 2>/dev/null || true
        wait "$inside" || true
    fi
    rm -rf "$scratch"
}

tools="lintian apt-utils gnupg"

root() { # RELEASE: the path of its root, which changes with what has to be in it; PACKAGES_ROOT: another that is there
    echo "${PACKAGES_ROOT:-$PWD/.cache/packages/$1-$({ echo "$tools" && sed -n '/^Build-/,/^Standards/{/^Standards/!p}' packaging/debian/control; } | sha256sum | cut -c 1-16)}"
}

in_root() { # ROOT SHARED SCRIPT: run it there, on a layer in memory, without a network; SHARED is /share there
    layer=$(mktemp -d -p "$scratch")
    # in the background, as a shell that waits for a command in the foreground handles no signals
    # shellcheck disable=SC2016 # it is run with these as its arguments
    unshare --mount --propagation private --net --uts --ipc --pid --fork --kill-child sh -ec '
        mount -t tmpfs -o size=3g layer "$3"
        mkdir "$3/upper" "$3/work" "$3/root"
        mount -t overlay -o "lowerdir=$0,upperdir=$3/upper,workdir=$3/work" root "$3/root"
        mkdir -p "$3/root/share"
        mount --bind "$1" "$3/root/share"
        mount -t proc proc "$3/root/proc"
        mount --rbind /dev "$3/root/dev"
        mount -t tmpfs run "$3/root/run"
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root DEBIAN_FRONTEND=noninteractive \
            chroot "$3/root" /bin/sh -ec "$2"
    ' "$1" "$2" "$3" "$layer" &
    inside=$!
    status=0
    wait "$inside" || status=$?
    inside=
    return "$status"
}

mirror() { # this host's, or Debian's own
    cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        sed -nE 's#^(URIs:|deb( +\[[^]]*\])?) +([^ ]+/debian)/?( .*)?$#\3#p' | head -n 1 | grep . || echo http://deb.debian.org/debian
}

source_tree() { # VERSION DIRECTORY: write the archive of this tree there, the same bytes from the same files; sets date
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
