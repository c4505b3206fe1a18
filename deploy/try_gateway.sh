#!/usr/bin/env bash
# Route one study through the built gateway and serve images; no container engine needed (root and buildah).
#
#   deploy/try_gateway.sh BUNDLE DICOM_FOLDER
#
# Starts `semiseg serve` and `semiseg gateway` in their images as their own user, sends the study by C-STORE, takes the
# segmentation as an archive would, stops everything, and prints what the gateway image's size is made of.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/buildah.sh"

if (($# != 2)) || [[ ! -d $1 || ! -d $2 ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
bundle=$(realpath -- "$1") study=$(realpath -- "$2")
read -r web dicom status archive < <(python3 - <<'PYTHON'
import socket

free = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(one.getsockname()[1] for one in free))
PYTHON
)

need_buildah
scratch=$(mktemp -d)
serving=$(buildah_ from --pull-never localhost/semiseg-serve:latest)
routing=$(buildah_ from --pull-never localhost/semiseg-gateway:latest)
running=()
clean_up() {
    for one in ${running[@]+"${running[@]}"}; do
        kill -TERM -- "-$one" 2>/dev/null || true
        wait "$one" 2>/dev/null || true
    done
    buildah_ rm "$serving" "$routing" >/dev/null 2>&1 || true
    rm -rf --one-file-system -- "$scratch"
}
trap clean_up EXIT

mkdir -m 0755 "$scratch/bundle" "$scratch/study" "$scratch/config"
mkdir -m 0777 "$scratch/serve" "$scratch/gateway" && chmod 0777 "$scratch/serve" "$scratch/gateway"
cp -rL -- "$bundle/." "$scratch/bundle/"
cp -rL -- "$study/." "$scratch/study/"
cat >"$scratch/config/gateway.yaml" <<YAML
state: /var/lib/semiseg
dimse: {port: $dicom, senders: [{ae_title: MODALITY, addresses: [127.0.0.1]}]}
web: {port: $status}
completeness: {quiet_seconds: 2}
servers: {urls: ["http://127.0.0.1:$web"]}
rules: [{name: everything, to: [archive]}]
destinations: {archive: {type: dimse, ae_title: ARCHIVE, host: 127.0.0.1, port: $archive}}
retention: {free_bytes: 0}
YAML
chmod -R a+rX "$scratch"

# Sessions of their own, so that each whole family can be stopped and nothing else.
setsid buildah --storage-driver vfs run --isolation chroot --volume "$scratch/bundle:/bundle:ro" \
    --volume "$scratch/serve:/var/lib/semiseg" "$serving" -- \
    semiseg serve /bundle --host 127.0.0.1 --port "$web" >"$scratch/serve.log" 2>&1 &
running+=($!)
setsid buildah --storage-driver vfs run --isolation chroot --volume "$scratch/config:/config:ro" \
    --volume "$scratch/gateway:/var/lib/semiseg" "$routing" -- \
    semiseg gateway --config /config/gateway.yaml >"$scratch/gateway.log" 2>&1 &
running+=($!)

in_image() {
    buildah_ run --isolation chroot --volume "$scratch/study:/study:ro" \
        --volume "$here/route_study.py:/route_study.py:ro" "$routing" -- "$@"
}
if ! in_image python /route_study.py /study "$dicom" "$archive"; then
    tail -n 20 "$scratch/serve.log" "$scratch/gateway.log" >&2
    exit 1
fi

echo
echo "Size of localhost/semiseg-gateway:latest, by package (MB on disk, the twelve largest):"
in_image python - <"$here/package_sizes.py"
