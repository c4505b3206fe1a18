#!/usr/bin/env bash
# Make a minimal Debian 12 with debootstrap, from the mirror this machine uses, and store it as the image named $1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/buildah.sh
name=${1:-localhost/debian:bookworm-slim}

need_buildah
if ! command -v debootstrap >/dev/null; then
    echo "debootstrap is missing; apt-get install debootstrap, or name a Debian 12 image with --base." >&2
    exit 2
fi
# Debian's archives as apt uses them here (main, updates, security); debootstrap has its own default where there are none.
archives=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    awk '$2 ~ /^bookworm(-updates|-security)?$/ && $3 == "main" { print "deb", $1, $2, $3 }' | sort -u) || archives=''
mirror=$(awk '$3 == "bookworm" { print $2; exit }' <<<"$archives")

root=$(mktemp -d)
container=''
clean_up() {
    [[ -z $container ]] || buildah_ rm "$container" >/dev/null 2>&1 || true
    rm -rf --one-file-system -- "$root"
}
trap clean_up EXIT

debootstrap --variant=minbase bookworm "$root" ${mirror:+"$mirror"} >"$root.log" 2>&1 || {
    tail -n 20 "$root.log" >&2
    echo "debootstrap failed; its last lines are above." >&2
    exit 1
}
rm -f "$root.log"
# What Debian's own slim images leave out: documentation, translations, and the package files and lists.
find "$root/usr/share/doc" ! -type d ! -name copyright -delete
rm -rf "$root"/usr/share/{man,info,locale}/* "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/*.log
cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<'DPKG'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
DPKG
if [[ -n $archives ]]; then echo "$archives" >"$root/etc/apt/sources.list"; fi

container=$(buildah_ from scratch)
buildah_ copy --quiet "$container" "$root" / >/dev/null
buildah_ config --cmd bash "$container"
buildah_ commit --quiet --format docker "$container" "$name" >/dev/null
echo "Stored $name."
