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

# pip's view of this machine, as one file: `pip config` merges the global, user and environment settings.
pip=(python3 -m pip)
"${pip[@]}" --version >/dev/null 2>&1 || pip=(pip)
"${pip[@]}" config list 2>/dev/null >"$scratch/settings" || true
python3 - "$scratch" <<'PYTHON'
import ast
import os
import re
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

scratch = Path(sys.argv[1])
settings: dict[str, str] = {}
for line in (scratch / "settings").read_text().splitlines():
    name, _, value = line.partition("=")
    if name.startswith(("global.", "install.", "site.")):
        settings[name.split(".", 1)[1]] = ast.literal_eval(value)
authority = settings.pop("cert", None) or os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
authority = authority or "/etc/ssl/certs/ca-certificates.crt"
(scratch / "authority").write_text(authority if Path(authority).is_file() else "")

# PIP_CERT and PIP_CONFIG_FILE name files of this machine; the build gets those files under other names.
own = ("PIP_CERT", "PIP_CONFIG_FILE", "PIP_CACHE_DIR", "PIP_REQUIRE_VIRTUALENV")
environment = {n: v for n, v in sorted(os.environ.items()) if re.fullmatch(r"PIP_[A-Z_]+", n) and n not in own}

# Local package folders appear in the build as /run/lent/0, 1, ...: their names here are nobody's business there. An
# index of files (file:///a/simple) refers to its neighbours (../files), so its parent folder is what has to be lent.
lent: list[Path] = []


def in_the_build(word: str) -> str:
    """An address as the build sees it: of a folder lent to it when it is one of this machine, unchanged otherwise."""
    is_url = word.startswith("file:")
    path = Path(unquote(urlparse(word).path) if is_url else word)
    if not (is_url or path.is_absolute()) or not path.is_dir():
        return word
    folder = path.parent if is_url and len(path.parts) > 2 else path
    if folder not in lent:
        lent.append(folder)
    moved = Path("/run/lent") / str(lent.index(folder)) / path.relative_to(folder)
    return f"file://{moved}" if is_url else str(moved)


configuration = ["[global]"]
for name, value in settings.items():
    configuration += [f"{name} =", *(f"    {in_the_build(word)}" for word in value.split())]
(scratch / "pip_conf").write_text("\n".join(configuration) + "\n")
exports = [f"export {n}={shlex.quote(' '.join(map(in_the_build, v.split())))}\n" for n, v in environment.items()]
(scratch / "pip_env").write_text("".join(exports))
(scratch / "volumes").write_text("".join(f"{folder}:/run/lent/{n}:ro\n" for n, folder in enumerate(lent)))
PYTHON

lend=(--secret "id=pip_conf,src=$scratch/pip_conf" --secret "id=pip_env,src=$scratch/pip_env")
authority=$(<"$scratch/authority")
[[ -z $authority ]] || lend+=(--secret "id=ca_certificates,src=$(readlink -f "$authority")")
while IFS= read -r volume; do lend+=(--volume "$volume"); done <"$scratch/volumes"

buildah_ bud --isolation chroot --pull-never --format docker --layers=false \
    --target "$target" --tag "$tag" --build-arg "BASE=$base" \
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    "${lend[@]}" ${more[@]+"${more[@]}"} .
echo "Built $tag."
