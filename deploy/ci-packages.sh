#!/usr/bin/env bash
# Install the system programs that some tests talk to (Debian, as root); `make test` skips those tests without them.
# Installs what is missing and nothing twice. With --check: installs nothing, exit code 1 when something is missing.
set -euo pipefail

packages=(orthanc orthanc-dicomweb dcmtk openssl dicom3tools dcm2niix chromium chromium-driver buildah debootstrap faketime nginx-light caddy)

command -v npm >/dev/null || packages+=(npm) # it brings the viewer of the server's page; any npm will do

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $state == installed ]] || missing+=("$package")
done

if ((${#missing[@]} == 0)); then
    exit 0
fi
if [[ ${1:-} == --check ]]; then
    exit 1
fi
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "ci-packages: not root on a Debian system, so these stay missing and their tests skip: ${missing[*]}" >&2
    exit 0
fi

# Debian starts a service when it is installed. The tests start Orthanc themselves, on ports of their own, so services
# are kept from starting meanwhile (policy-rc.d is Debian's switch for that; an existing one is left alone).
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
# An unrelated archive of the machine may be out of reach; whether Debian's own was found shows in the next step.
apt-get update -q || echo "ci-packages: apt-get update had errors; going on with what it has" >&2
apt-get install -q -y --no-install-recommends "${missing[@]}" </dev/null

for package in "${missing[@]}"; do
    if [[ $package == orthanc ]] && command -v service >/dev/null && service orthanc status >/dev/null 2>&1; then
        service orthanc stop
    fi
done
