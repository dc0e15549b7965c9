#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Make an apt repository of the packages in build/packages, as the directory build/repository: signed, with by-hash, to
# be copied to any web server or read where it is. RELEASE.sources in it is the file for /etc/apt/sources.list.d, virt-dmem.asc the key.
#
#   REPO_URI   where apt will find it; default: this directory (file:)
#   REPO_KEY   the key of gpg to sign with; default: a new one, kept in .cache/packages/gnupg, for trying out

set -eu

cd "$(dirname "$0")/.."
target=$PWD/build/repository
uri=${REPO_URI:-file:$target}
new=$target.new

. packaging/root.sh

die() {
    echo "repo: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || die "only root can enter a root of Debian"
command -v gpg >/dev/null || die "gpg is missing"
[ -d build/packages ] || die "there are no packages yet: make deb"

if [ -z "${REPO_KEY:-}" ]; then
    export GNUPGHOME="$PWD/.cache/packages/gnupg"
    REPO_KEY=packages@virt-dmem.dev
    if [ ! -d "$GNUPGHOME" ]; then
        mkdir -p "$GNUPGHOME"
        chmod 0700 "$GNUPGHOME"
        gpg --quiet --batch --passphrase '' --quick-generate-key "virt-dmem, for trying out <$REPO_KEY>" ed25519 sign never
    fi
fi

# shellcheck disable=SC2016 # run in the root
index='
cd /share
dist=dists/$release/main
for architecture in $architectures; do
    mkdir -p "$dist/binary-$architecture"
    apt-ftparchive -qq --arch "$architecture" packages "pool/$release" >"$dist/binary-$architecture/Packages"
done
mkdir -p "$dist/source"
apt-ftparchive -qq sources "pool/$release" >"$dist/source/Sources"
for index in "$dist"/*/*; do
    xz --keep "$index"
    mkdir -p "${index%/*}/by-hash/SHA256"
    for file in "$index" "$index.xz"; do
        cp "$file" "${index%/*}/by-hash/SHA256/$(sha256sum <"$file" | cut -d " " -f 1)"
    done
done
field=APT::FTPArchive::Release
apt-ftparchive -o "$field::Origin=virt-dmem" -o "$field::Suite=$release" -o "$field::Codename=$release" \
    -o "$field::Components=main" -o "$field::Architectures=$architectures" -o "$field::Acquire-By-Hash=yes" \
    release "dists/$release" >Release
mv Release "dists/$release/Release"
'

rm -rf "$new" # of a run that failed
for packages in build/packages/*; do
    release=${packages##*/}
    pool=pool/$release/v/virt-dmem
    mkdir -p "$new/$pool"
    find "$packages" -type f ! -name '*.buildinfo' ! -name '*.changes' ! -name log -exec cp {} "$new/$pool" \;
    architectures=$(for deb in "$packages"/*.deb; do dpkg-deb -f "$deb" Architecture; done | sort -u | grep -v all)
    architectures=$(echo "$architectures" | tr '\n' ' ')
    in_root "$(root "$release")" "$new" "release='$release' architectures='${architectures% }'; $index"
    gpg --quiet --batch --yes --local-user "$REPO_KEY" --clearsign --output "$new/dists/$release/InRelease" "$new/dists/$release/Release"
    gpg --quiet --batch --yes --local-user "$REPO_KEY" --armor --detach-sign --output "$new/dists/$release/Release.gpg" \
        "$new/dists/$release/Release"
    cat >"$new/$release.sources" <<END
Types: deb deb-src
URIs: $uri
Suites: $release
Components: main
Signed-By:
$(gpg --armor --export "$REPO_KEY" | sed 's/^$/./; s/^/ /')
END
done
gpg --armor --export "$REPO_KEY" >"$new/virt-dmem.asc"
chmod -R u=rwX,go=rX "$new"
rm -rf "$target"
mv "$new" "$target"
echo "repo: $target, for $uri"
