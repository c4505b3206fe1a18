#!/usr/bin/env bash
# Run the built serve image and segment one scan with it over HTTP; no container engine needed (root and buildah).
#
#   deploy/try_image.sh BUNDLE SCAN.nii.gz [--image NAME] [--port N] [--keep MASK.nii.gz]
#
# Starts `semiseg serve` in the image as its own user, waits for /readyz, posts the scan, checks that the mask has the
# scan's shape and affine, stops everything, and prints what the image's size is made of.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/buildah.sh"

image=localhost/semiseg-serve:latest port=3000 keep='' named=()
while (($#)); do
    case $1 in
        --image) image=$2; shift 2 ;;
        --port) port=$2; shift 2 ;;
        --keep) keep=$2; shift 2 ;;
        --*) named=(); break ;;
        *) named+=("$(realpath -- "$1")"); shift ;;
    esac
done
if ((${#named[@]} != 2)) || [[ ! -d ${named[0]} || ! -f ${named[1]} ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
bundle=${named[0]} scan=${named[1]}

need_buildah
scratch=$(mktemp -d)
container=$(buildah_ from --pull-never "$image")
server=''
clean_up() {
    # The server runs in a session of its own, so that its whole family can be stopped and nothing else.
    [[ -z $server ]] || kill -TERM -- "-$server" 2>/dev/null || true
    [[ -z $server ]] || wait "$server" 2>/dev/null || true
    buildah_ rm "$container" >/dev/null 2>&1 || true
    rm -rf --one-file-system -- "$scratch"
}
trap clean_up EXIT

in_image() { buildah_ run --isolation chroot "${mounts[@]}" "$container" -- "$@"; }

# The image's user must be able to read what is lent to it and to write its own folder, whatever their modes here.
mkdir -m 0755 "$scratch/bundle" "$scratch/scan"
mkdir -m 0777 "$scratch/state" && chmod 0777 "$scratch/state"
cp -rL -- "$bundle/." "$scratch/bundle/"
cp -L -- "$scan" "$scratch/scan/"
chmod -R a+rX "$scratch"
mounts=(
    --volume "$scratch/bundle:/bundle:ro" --volume "$scratch/scan:/scan:ro" --volume "$scratch/state:/var/lib/semiseg"
    --volume "$here/ask_server.py:/ask_server.py:ro"
)

setsid buildah --storage-driver vfs run --isolation chroot "${mounts[@]}" "$container" -- \
    semiseg serve /bundle --host 127.0.0.1 --port "$port" >"$scratch/log" 2>&1 </dev/null &
server=$!

if ! in_image python /ask_server.py "http://127.0.0.1:$port" "/scan/$(basename -- "$scan")" /var/lib/semiseg/mask.nii.gz; then
    echo "The server in $image did not segment the scan; its last lines:" >&2
    tail -n 30 "$scratch/log" >&2
    exit 1
fi
[[ -z $keep ]] || cp -- "$scratch/state/mask.nii.gz" "$keep"

echo
echo "Size of $image, by package (MB on disk, the twelve largest):"
in_image python - <"$here/package_sizes.py"
