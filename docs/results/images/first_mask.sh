#!/usr/bin/env bash
# Seconds from nothing to a first mask, for each way of installing: first_mask.sh REPOSITORY BUNDLE SCAN.nii.gz
#
# Nothing is cached between the ways. Needs root, buildah and debootstrap for `image`, and `docker` for the rest of it.
set -euo pipefail
repository=$(realpath "$1") bundle=$(realpath "$2") scan=$(realpath "$3")
export PIP_NO_CACHE_DIR=1
scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT
chmod 755 "$scratch"
cd "$scratch"
say() { printf '%-62s %5d s\n' "$1" $((SECONDS - since)); }

since=$SECONDS
git clone -q "$repository" made && cd made
make install >/dev/null 2>&1
say "make: clone, make install"
.venv/bin/semiseg predict "$bundle" "$scan" --out mask.nii.gz >/dev/null
say "make: ... and semiseg predict (a bundle that is there)"
since=$SECONDS
make demo >/dev/null 2>&1
say "make: make demo beside it (trains its own model first)"
cd ..

since=$SECONDS
git clone -q "$repository" imaged && cd imaged
deploy/build_image.sh --target serve >"$scratch/build.log" 2>&1 || { tail "$scratch/build.log" >&2; exit 1; }
say "image: clone, the image built, its Debian base too"
mkdir -m 0777 out && chmod 0777 out
in_image=(run --rm --network none --read-only --cap-drop ALL -v "$bundle:/bundle:ro" -v "$scan:/scan.nii.gz:ro"
    -v "$PWD/out:/var/lib/semiseg" localhost/semiseg-serve predict /bundle /scan.nii.gz --out /var/lib/semiseg/mask.nii.gz)
docker "${in_image[@]}" >/dev/null
say "image: ... and semiseg predict in it"
buildah --storage-driver vfs push localhost/semiseg-serve:latest docker-archive:"$scratch/serve.tar" >/dev/null 2>&1
docker rmi -f localhost/semiseg-serve >/dev/null
rm out/mask.nii.gz
since=$SECONDS
docker load --input "$scratch/serve.tar" >/dev/null
docker "${in_image[@]}" >/dev/null
say "offline, image ($(($(stat -c %s "$scratch/serve.tar") / 1000000)) MB carried): docker load, semiseg predict"
cd ..

cd imaged
pip download -q -r deploy/serve.lock --require-hashes --no-deps -d "$scratch/wheels"
pip wheel -q --no-deps -w "$scratch/wheels" .
cd ..
since=$SECONDS
python3 -m venv inside
inside/bin/pip install -q --no-index --find-links wheels --require-hashes --no-deps -r imaged/deploy/serve.lock
inside/bin/pip install -q --no-index --find-links wheels --no-deps semiseg
inside/bin/semiseg predict "$bundle" "$scan" --out mask.nii.gz >/dev/null
say "offline, wheels ($(du -sm wheels | cut -f1) MB carried): installed, semiseg predict"
