#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Build the RPMs of packaging/rpm/virt-dmem.spec with Debian's rpmbuild, check them with its rpmlint, install them into a
# root, and compare their files with those of the Debian packages. Nothing here is a host of Fedora: rpm/macros.debian has
# stand-ins for Fedora's macros, and dependencies, which have Fedora's names, are not resolved. As root.
#
#   rpm.sh inputs     get what a build needs, into .cache/packages. Needs a Debian mirror and PyPI, once
#   rpm.sh build      build into build/rpm, without a network
#   rpm.sh lint       have rpmlint look at spec and packages
#   rpm.sh install    install them into a root, and remove them again: refused while it has to be, and leaving nothing
#   rpm.sh compare    compare their files with those of packaging/deb.sh build trixie: rpm/differences lists what differs

set -eu
export LC_ALL=C

cd "$(dirname "$0")/.."
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' virt_dmem/__init__.py)
base=trixie # it has all the Python modules that Fedora has
packages="rpm rpmlint systemd gcc make bzip2 xz-utils file elfutils libjson-c-dev selinux-policy-dev semodule-utils checkpolicy m4 python3-dev
    python3-libvirt python3-lxml python3-msgspec python3-prometheus-client python3-pyudev python3-rich python3-shtab"

. packaging/root.sh

rpm_root=$PWD/.cache/packages/rpm-$(echo "$packages" | sha256sum | cut -c 1-16)

die() {
    echo "rpm: $*" >&2
    exit 1
}

inputs() {
    packaging/deb.sh inputs
    [ ! -d "$rpm_root" ] || return 0
    echo "rpm: making the root"
    rm -rf .cache/packages/making-rpm .cache/packages/rpm-*
    # shellcheck disable=SC2086 # a list
    mmdebstrap --variant=minbase --mode=root --quiet --aptopt='APT::Install-Recommends false' \
        --include="$(echo $packages | tr ' ' ,)" "$base" .cache/packages/making-rpm "deb $(mirror) $base main"
    mv .cache/packages/making-rpm "$rpm_root"
}

there() { # SHARED SCRIPT
    [ -d "$rpm_root" ] || die "there is no root yet: packaging/rpm.sh inputs"
    in_root "$rpm_root" "$1" "$2"
}

built() {
    [ -d build/rpm ] || die "there are no packages yet: packaging/rpm.sh build"
}

# shellcheck disable=SC2016 # run in the root
build_there='
top=$HOME/rpmbuild
mkdir -p "$top/SOURCES" /share/out
cp /share/*.tar.* "$top/SOURCES"
mkdir -p /etc/rpm
cp /share/macros.debian /etc/rpm/macros.debian
rpmbuild --nodeps -ba /share/virt-dmem.spec >/share/log 2>&1 || {
    tail -n 60 /share/log
    exit 1
}
find "$top/RPMS" "$top/SRPMS" -name "*.rpm" -exec cp {} /share/out \;
'

build() {
    began=$(date +%s)
    work=$(mktemp -d -p "$scratch")
    source_tree "$version" "$work"
    cp .cache/packages/sources/asyncvarlink-*.tar.gz .cache/packages/sources/qemu_qmp-*.tar.gz "$work"
    cp packaging/rpm/virt-dmem.spec packaging/rpm/macros.debian "$work"
    there "$work" "$build_there"
    rm -rf build/rpm
    mkdir -p build
    mv "$work/out" build/rpm
    cp "$work/log" build/rpm
    rm -rf "$work"
    echo "rpm: in $(($(date +%s) - began)) s, build/rpm:"
    (cd build/rpm && wc -c -- *.rpm)
}

lint() {
    built
    cp packaging/rpm/rpmlint.toml packaging/rpm/virt-dmem.spec packaging/rpm/macros.debian build/rpm
    # strict: warnings are errors
    there "$PWD/build/rpm" 'mkdir -p /etc/rpm; cp /share/macros.debian /etc/rpm; cd /share
        rpmlint --strict --config rpmlint.toml virt-dmem.spec ./*.rpm'
}

# The root is its own: a second mount of it, where rpm changes its root, so that scriptlets run there.
# shellcheck disable=SC2016 # run in the root
install_there='
# directories of other packages of Fedora: filesystem, libvirt, selinux-policy; and a fake of its dkms
mkdir -p /there /usr/share/licenses /usr/share/zsh/site-functions /etc/libvirt/hooks /etc/libvirt/qemu \
    /usr/share/selinux/packages/targeted /var/lib/selinux/targeted/active/modules/200
printf "#!/bin/sh\necho \"\$1\" >>/tmp/dkms\n" >/usr/sbin/dkms
chmod 0755 /usr/sbin/dkms
files() {
    find / -xdev -path /there -prune -o -path "/var/lib/rpm*" -prune -o -path /share -prune -o -path /tmp -prune -o -print 2>/dev/null | sort
}
mount --bind / /there
mount -t proc proc /there/proc
mount --bind /dev /there/dev
cp $(ls /share/*.rpm | grep -v "src.rpm\|debug") /there/root
rpm --root /there --initdb
files >/tmp/before
rpm --root /there -i --nodeps /root/*.rpm 2>&1 | grep -v "private mounts in chroot not implemented" || true
'

# shellcheck disable=SC2016 # run in the root
remove_there='
die() { echo "rpm: $*" >&2; exit 1; }
getent group virt-dmem >/dev/null || die "there is no group virt-dmem"
virt-dmem --version | grep -q "$version" || die "the command does not run"
virt-dmemd --help >/dev/null || die "the daemon does not run"
[ -x /etc/libvirt/hooks/qemu.d/50-virt-dmem ] || die "there is no hook"
rpm --root /there -V --nodeps virt-dmem virt-dmem-dkms virt-dmem-selinux || die "what is installed is not what was packaged"

echo "<domain xmlns:d=\"https://virt-dmem.dev/xmlns/domain/1.0\"/>" >/etc/libvirt/qemu/busy.xml
! rpm --root /there -e virt-dmem 2>/tmp/said || die "it was removed although a domain needs it"
grep -q "^    busy$" /tmp/said || { cat /tmp/said; die "the refusal does not name the domain"; }
[ -x /etc/libvirt/hooks/qemu.d/50-virt-dmem ] || die "something was taken away before the refusal"
rm /etc/libvirt/qemu/busy.xml

mkdir -p /var/lib/virt-dmem/pools
echo "{\"backend\": \"dmemfs\"}" >/var/lib/virt-dmem/pools/fast.json
! rpm --root /there -e virt-dmem-dkms 2>/tmp/said || die "the module was removed although a pool needs it"
grep -q "^    fast$" /tmp/said || { cat /tmp/said; die "the refusal does not name the pool"; }
rm -r /var/lib/virt-dmem/pools

python3 -c "import sqlite3; sqlite3.connect(\"/var/lib/virt-dmem/ledger.sqlite\").execute(\"PRAGMA user_version = 99\")"
! rpm --root /there -U --replacepkgs --nodeps /root/virt-dmem-0*.rpm 2>/tmp/said || die "it took a ledger of a later version"
grep -q "has version 99" /tmp/said || { cat /tmp/said; die "the refusal does not name the version"; }
rm -r /var/lib/virt-dmem

rpm --root /there -U --replacepkgs --nodeps /root/virt-dmem-0*.rpm 2>&1 | grep -v "private mounts" || true
[ -x /etc/libvirt/hooks/qemu.d/50-virt-dmem ] || die "the hook is gone"
rpm --root /there -e virt-dmem virt-dmem-dkms virt-dmem-selinux 2>&1 | grep -v "private mounts" || true
! rpm --root /there -qa | grep virt-dmem || die "it cannot be removed"
files >/tmp/after
comm -13 /tmp/before /tmp/after >/tmp/left
[ "$(echo $(cat /tmp/dkms))" = "add build install remove" ] || die "dkms was called for: $(cat /tmp/dkms)"
[ ! -s /tmp/left ] || { cat /tmp/left; die "files are left"; }
'

installed() {
    built
    there "$PWD/build/rpm" "version='$version'; $install_there $remove_there"
    echo "rpm: installed, verified, not removed while needed, installed again, removed"
}

# shellcheck disable=SC2016 # run in the root
list_there='
cd /
rpm -qal --root /there "virt-dmem*" | while read -r file; do
    [ -d "$file" ] || [ ! -e "$file" ] || echo "$file"
done >/tmp/files
tar -C / -c -T /tmp/files 2>/dev/null | tar -x -C /share/rpm
'

compare() {
    built
    debs=build/packages/$base
    [ -d "$debs" ] || die "there are no Debian packages yet: packaging/deb.sh build $base"
    work=$(mktemp -d -p "$scratch")
    mkdir "$work/rpm" "$work/deb"
    for deb in "$debs"/virt-dmem_*.deb "$debs"/virt-dmem-dkms_*.deb; do
        dpkg-deb -x "$deb" "$work/deb"
    done
    cp build/rpm/*.rpm "$work"
    there "$work" "$install_there $list_there"
    for kind in deb rpm; do
        find "$work/$kind" -name '*.gz' -exec gunzip {} \;
        (cd "$work/$kind" && find . -type d \( -name __pycache__ -o -name .build-id \) -prune -o ! -type d ! -path '*/virt_dmem/commit' -print | sort | while read -r file; do
            if [ -L "$file" ]; then readlink "$file"; else sha256sum <"$file"; fi >"$work/content"
            echo "$file $(stat -c %a "$file") $(cat "$work/content")"
        done) >"$work/$kind.list"
    done
    sort "$work/deb.list" "$work/rpm.list" | uniq -d >"$work/same"
    {
        grep '^#' packaging/rpm/differences
        cut -d ' ' -f 1 "$work/deb.list" >"$work/deb.names"
        cut -d ' ' -f 1 "$work/rpm.list" >"$work/rpm.names"
        comm -23 "$work/deb.names" "$work/rpm.names" | sed 's/^\./deb /'
        comm -13 "$work/deb.names" "$work/rpm.names" | sed 's/^\./rpm /'
        comm -23 "$work/deb.list" "$work/rpm.list" | cut -d ' ' -f 1 | comm -12 - "$work/rpm.names" | sed 's/^\./both, not the same /'
    } >"$work/differences"
    cp "$work/differences" build/rpm
    wc -l <"$work/same" >build/rpm/same
    rm -rf "$work"
    diff -u packaging/rpm/differences build/rpm/differences || die "other files differ than packaging/rpm/differences says"
    echo "rpm: $(cat build/rpm/same) files are the same as the .deb's; packaging/rpm/differences lists the others"
}

[ "$(id -u)" -eq 0 ] || die "only root can make a root of Debian, and enter it"
case ${1:-} in
inputs | build | lint | compare) "$1" ;;
install) installed ;;
*)
    echo "usage: $0 inputs | build | lint | install | compare" >&2
    exit 2
    ;;
esac
