#!/usr/bin/env bash
# The walk of deploy/compose/README.md, done by a machine: a study in by C-STORE, its SEG in Orthanc, three servers.
#
#   deploy/try_compose.sh BUNDLE DICOM_FOLDER
#
# Needs Docker (or Podman behind DOCKER_HOST) with Compose, DCMTK's storescu, and the ports 11112, 8080, 4242 and 8042.
# COMPOSE names the command, `docker compose` by default. Everything is taken down at the end, volumes too.
set -euo pipefail
[[ $# == 2 && -d $1 && -d $2 ]] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
BUNDLE=$(cd "$1" && pwd)
study=$(cd "$2" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
read -ra compose <<<"${COMPOSE:-docker compose}"
compose+=(--project-name semiseg-try --profile orthanc)

CONFIG=$(mktemp -d)
export BUNDLE CONFIG
clean_up() {
    (($? == 0)) || "${compose[@]}" logs --tail 40 >&2 || true
    "${compose[@]}" down --volumes >/dev/null 2>&1 || true
    rm -rf -- "$CONFIG"
}
trap clean_up EXIT
cp deploy/compose/gateway.yaml deploy/compose/orthanc.json "$CONFIG"
key=$(openssl rand -hex 32)
echo "gateway $key" >"$CONFIG/keys"
echo "$key" >"$CONFIG/server_key"
chmod 755 "$CONFIG"
chmod 644 "$CONFIG"/*

gateway() { "${compose[@]}" exec -T gateway semiseg gateway --config /config/gateway.yaml "$@"; }
until_true() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || { echo "Not in time: $*" >&2; return 1; }
        sleep 1
    done
}
found() { curl --silent --fail --user demo:demo http://127.0.0.1:8042/series?expand | grep -q "\"Modality\" : \"$1\""; }
servers() { [[ $(gateway check 2>/dev/null | grep -c '^server .*: answers') == "$1" ]]; }

"${compose[@]}" up -d
until_true 120 gateway check
echo "server, gateway and Orthanc answer each other after $SECONDS s"
sent=$SECONDS
storescu -aec SEMISEG +sd +r 127.0.0.1 11112 "$study"
until_true 120 found SEG
until_true 60 found SR
echo "SEG and report are in Orthanc $((SECONDS - sent)) s after the study was sent"
gateway status
"${compose[@]}" up -d --no-recreate --scale server=3
until_true 120 servers 3
echo "the gateway has found three servers"
