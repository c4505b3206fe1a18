#!/usr/bin/env bash
# Try this commit on the Pythons of Debian's releases: a fresh Debian for each, a clone in it, `make demo`, `make test`.
#
#   deploy/try_pythons.sh [--quick] [--keep] [RELEASE ...]        # trixie (Debian 13) and forky (testing) by default
#
# --quick  instead of the two: install without PyTorch (with it where TORCH_INDEX names an index of its CPU builds),
#          segment a scan with `semiseg predict` and with `semiseg serve`, and run the suite's core
# --keep   leave the roots in place and say where they are
#
# Needs root, debootstrap and Debian's archive, and ends with 2 and a sentence where one is missing. pip
# inside reaches packages as pip on this machine does (pip_settings.py). Of the environment, JOBS, ARGS, TORCH_INDEX (see
# `make help`) and SEMISEG_DATA are handed on; the roots lie in TMPDIR.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick='' keep='' releases=()
while (($#)); do
    case $1 in
        --quick) quick=yes ;;
        --keep) keep=yes ;;
        -*) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
        *) releases+=("$1") ;;
    esac
    shift
done
((${#releases[@]})) || releases=(trixie forky)

if [[ $(id -u) != 0 ]] || ! command -v debootstrap >/dev/null; then
    echo "Trying other Pythons needs root (chroot and mounts) and debootstrap; on Debian: apt-get install debootstrap." >&2
    exit 2
fi
# The installed CUDA build of PyTorch and its copy in pip's cache are most of it.
needed=$([[ -n $quick ]] && echo 4 || echo 16)
scratch=$(mktemp -d)
free=$(df --output=avail --block-size=1G "$scratch" | tail -n 1)
root='' running='' doing=''
clean_up() {
    if [[ -n $doing ]]; then
        tail -n 60 "$scratch/log" >&2
        echo "$release: $doing failed; its last lines are above." >&2
    fi
    # `unshare --kill-child` takes all processes of its namespace and its mounts with it, so the root holds no mount here.
    [[ -z $running ]] || { kill -KILL "$running" && wait "$running"; } 2>/dev/null || true
    if [[ -n $root && -z $keep ]]; then
        rm -rf --one-file-system -- "$root" 2>/dev/null || { sleep 2; rm -rf --one-file-system -- "$root"; }
    fi
    rm -rf -- "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if ((free < needed)); then
    echo "$(dirname "$scratch") has $free GB free, and this needs about $needed; name another folder in TMPDIR." >&2
    exit 2
fi

# Run a command in namespaces of its own and wait, so that this script can be interrupted meanwhile and nothing outlives it.
alone() {
    unshare --mount --pid --fork --kill-child --mount-proc --propagation private -- "$@" &
    running=$!
    local failed=0
    wait "$running" || failed=1 # whatever its own code was: 2 has a meaning here
    running=''
    return "$failed"
}

# Debian's archive as apt uses it here; debootstrap has its own default where there is none.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
    awk '$2 !~ /-/ { print $1; exit }') || mirror=''

make_root() { # RELEASE
    # debootstrap has a mirror of its own where none is named, and "sid" is its script for releases that it does not know.
    local include=python3,python3-venv,ca-certificates source=("$mirror")
    [[ -n $quick ]] || include+=,git,make
    [[ -e /usr/share/debootstrap/scripts/$1 ]] || source+=(sid)
    alone debootstrap --variant=minbase --include="$include" "$1" "$root" "${source[@]}" >"$scratch/log" 2>&1 || exit 2
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    python3 deploy/pip_settings.py "$scratch"
    cp "$scratch/pip_conf" "$root/etc/pip.conf"
    local authority
    authority=$(<"$scratch/authority")
    if [[ -n $authority ]]; then
        cp -L "$authority" "$root/etc/ssl/certs/ca-certificates.crt"
        printf 'cert = /etc/ssl/certs/ca-certificates.crt\n' >>"$root/etc/pip.conf"
    fi
    git clone --quiet --no-hardlinks . "$root/root/semiseg"
}

# Run a line of bash in the root's clone. What this machine lends (pip's cache and package folders, data) is mounted meanwhile.
in_root() { # COMMAND
    {
        cat "$scratch/pip_env"
        local name
        for name in JOBS ARGS TORCH_INDEX http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
            [[ -z ${!name:-} ]] || printf 'export %s=%q\n' "$name" "${!name}"
        done
        [[ -z ${SEMISEG_DATA:-} ]] || echo 'export SEMISEG_DATA=/run/lent/data'
        printf 'cd /root/semiseg\n%s\n' "$1"
    } >"$root/root/command"
    {
        printf '%s:/root/.cache/pip:rw\n' "$cache"
        cat "$scratch/volumes"
        [[ -z ${SEMISEG_DATA:-} ]] || printf '%s:/run/lent/data:ro\n' "$SEMISEG_DATA"
    } >"$scratch/mounts"
    alone bash -euc '
        mount -t proc proc "$1/proc"; mount -t sysfs -o ro sysfs "$1/sys"; mount --rbind /dev "$1/dev"
        while IFS=: read -r from to mode; do
            mkdir -p "$1$to"; mount --bind "$from" "$1$to"; mount -o "remount,bind,$mode" "$1$to"
        done <"$2"
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot "$1" bash -eu /root/command
    ' in_root "$root" "$scratch/mounts" >"$scratch/log" 2>&1
}

# Run a step of a release, say how long it took and, of a test run, what it counted. A step that fails ends the script.
step() { # NAME COMMAND...
    local since=$SECONDS
    doing=$1
    shift
    "$@"
    echo "$release: $doing took $((SECONDS - since)) s"
    doing=''
    grep -E '^=*[^=]*[0-9]+ (passed|failed|skipped).* in [0-9.]+s' "$scratch/log" || true
}

cache=$(python3 -m pip cache dir 2>/dev/null) || cache=$HOME/.cache/pip
mkdir -p "$cache"
kept=$(dirname "$(printf '%s\n' tests/releases/*/about.json | sort --version-sort | tail -n 1)")
free_port="port=\$(python3 -c 'import socket; s = socket.create_server((\"127.0.0.1\", 0)); print(s.getsockname()[1])')"
extras=serve,gateway
[[ -z ${TORCH_INDEX:-} ]] || extras=serve,gateway,train,export
# What the suite's core imports of the extras `dev` and `export`.
tools='pytest pytest-timeout pytest-xdist hypothesis onnx httpx'

for release in "${releases[@]}"; do
    root=$(mktemp -d --tmpdir "semiseg-$release-XXXXXX")
    chmod 755 "$root"
    step 'making the root' make_root "$release"
    in_root 'python3 --version'
    echo "$release: $(<"$scratch/log")"
    if [[ -z $quick ]]; then
        step 'make demo' in_root 'make demo'
        step 'make test' in_root 'make test'
    else
        step "installing [$extras]" in_root "python3 -m venv .venv
            .venv/bin/python -m pip install -q -c constraints.txt ${TORCH_INDEX:+--extra-index-url '$TORCH_INDEX'} -e '.[$extras]' $tools
            .venv/bin/python -m pip check
            .venv/bin/python -c 'import highdicom' || .venv/bin/python -m pip install -q --no-deps -c constraints.txt highdicom"
        step 'semiseg predict' in_root ".venv/bin/semiseg predict $kept/bundle $kept/scan.nii.gz --out predicted.nii.gz"
        # What is left running at the end of a step ends with it.
        step 'semiseg serve' in_root "$free_port
            .venv/bin/semiseg serve $kept/bundle --port \$port &
            .venv/bin/python deploy/ask_server.py http://127.0.0.1:\$port $kept/scan.nii.gz mask.nii.gz"
        step "the suite's core" in_root "
            files=\$(deploy/core_tests.sh ${TORCH_INDEX:+--with-torch})
            OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n ${JOBS:-2} \$files"
    fi
    if [[ -n $keep ]]; then echo "$release: kept in $root"; else rm -rf --one-file-system -- "$root"; fi
    root=''
done
