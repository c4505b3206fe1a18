#!/usr/bin/env bash
# Build an image of the Dockerfile with buildah, on a machine without a container engine (root needed, no daemon).
#
#   deploy/build_image.sh [--target serve|serve-gpu|gateway|train] [--tag NAME] [--base IMAGE] [-- more arguments of `buildah bud`]
#
# Without --base, a minimal Debian 12 is made with debootstrap on first use and kept as localhost/debian:bookworm-slim.
# pip inside the build reaches the package index as pip on this machine does: its configuration, PIP_* variables and
# certificates are lent to the build as secrets, local package folders as read-only mounts; none of it enters the image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/buildah.sh

target=serve tag='' base='' more=()
while (($#)); do
    case $1 in
        --target) target=$2; shift 2 ;;
        --tag) tag=$2; shift 2 ;;
        --base) base=$2; shift 2 ;;
        --) shift; more=("$@"); break ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
tag=${tag:-localhost/semiseg-$target:latest}

need_buildah
# The page works without its viewer, with pictures.
[[ -e server/http/page/niivue.js ]] || python3 -m deploy.viewer || true
scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT

if [[ -z $base ]]; then
    base=localhost/debian:bookworm-slim
    buildah_ images --quiet "$base" >/dev/null 2>&1 || bash deploy/debian_base.sh "$base"
fi

python3 deploy/pip_settings.py "$scratch"
lend=(--secret "id=pip_conf,src=$scratch/pip_conf" --secret "id=pip_env,src=$scratch/pip_env")
authority=$(<"$scratch/authority")
[[ -z $authority ]] || lend+=(--secret "id=ca_certificates,src=$(readlink -f "$authority")")
while IFS= read -r volume; do lend+=(--volume "$volume"); done <"$scratch/volumes"

buildah_ bud --isolation chroot --pull-never --format docker --layers=false \
    --target "$target" --tag "$tag" --build-arg "BASE=$base" \
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    "${lend[@]}" ${more[@]+"${more[@]}"} .
echo "Built $tag."
