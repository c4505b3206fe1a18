#!/bin/sh
# Used inside the Dockerfile: make the virtual environment $1 and install $2 into it, pinned by constraints.txt.
# pip is told about the building machine (index, certificates) by secrets, which are mounted only while this runs.
set -eu
environment=$1
requirement=$2
secrets=/run/secrets

if [ -s "$secrets/pip_env" ]; then . "$secrets/pip_env"; fi
if [ -s "$secrets/pip_conf" ]; then export PIP_CONFIG_FILE="$secrets/pip_conf"; fi
if [ -s "$secrets/ca_certificates" ]; then export PIP_CERT="$secrets/ca_certificates" SSL_CERT_FILE="$secrets/ca_certificates"; fi
if [ -n "${TORCH_INDEX:-}" ]; then set -- --extra-index-url "$TORCH_INDEX"; else set --; fi

python3 -m venv "$environment"
"$environment/bin/pip" install --no-cache-dir -c constraints.txt "$@" "$requirement"
"$environment/bin/pip" check
# What installs packages has no business in what runs them.
"$environment/bin/pip" uninstall --yes --quiet setuptools pip
