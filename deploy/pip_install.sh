#!/bin/sh
# Used inside the Dockerfile: make the virtual environment $1 and install $2 into it. With a lock file $3, what it stands on
# are exactly the files whose hashes are there; without one, the versions that constraints.txt pins.
# pip is told about the building machine (index, certificates) by secrets, which are mounted only while this runs.
set -eu
environment=$1
requirement=$2
lock=${3:-}
secrets=/run/secrets

if [ -s "$secrets/pip_env" ]; then . "$secrets/pip_env"; fi
if [ -s "$secrets/pip_conf" ]; then export PIP_CONFIG_FILE="$secrets/pip_conf"; fi
if [ -s "$secrets/ca_certificates" ]; then export PIP_CERT="$secrets/ca_certificates" SSL_CERT_FILE="$secrets/ca_certificates"; fi
if [ -n "${TORCH_INDEX:-}" ]; then set -- --extra-index-url "$TORCH_INDEX"; else set --; fi

python3 -m venv "$environment"
# The viewer of the server's page, where the building machine did not bring it. Without it the page shows pictures.
case $lock in
    *gateway.lock) ;;
    *) [ -e server/http/page/niivue.js ] || "$environment/bin/python" -m deploy.viewer --from pypi || true ;;
esac
if [ -n "$lock" ]; then
    "$environment/bin/pip" install --no-cache-dir --require-hashes --no-deps -r "$lock"
    "$environment/bin/pip" install --no-cache-dir --no-deps "$requirement"
else
    "$environment/bin/pip" install --no-cache-dir -c constraints.txt "$@" "$requirement"
fi
"$environment/bin/pip" check
# What installs packages has no business in what runs them.
"$environment/bin/pip" uninstall --yes --quiet setuptools pip
