#!/usr/bin/env bash
# Build the images of a hospital, start them, and use both: a scan segmented, a study routed. Root, buildah, debootstrap.
#
#   deploy/try_images.sh
#
# Says why and ends with 0 on a machine that cannot make a base image (no rights, no archive of Debian within reach); what
# fails from there on is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/buildah.sh
base=localhost/debian:bookworm-slim
if ! said=$({ need_buildah && { buildah_ images --quiet "$base" || bash deploy/debian_base.sh "$base"; }; } 2>&1); then
    echo "No images here: ${said##*$'\n'}"
    exit 0
fi
release=$(dirname "$(printf '%s\n' tests/releases/*/about.json | sort --version-sort | tail -n 1)")
for target in serve gateway; do
    since=$SECONDS
    deploy/build_image.sh --target "$target" >"/tmp/semiseg-image-$target.log" 2>&1 || {
        tail -n 40 "/tmp/semiseg-image-$target.log" >&2
        exit 1
    }
    echo "$target: built in $((SECONDS - since)) s"
done
deploy/try_image.sh "$release/bundle" "$release/scan.nii.gz"
deploy/try_gateway.sh "$release/bundle" "$release"/gateway/studies/*
