# Sourced by the scripts beside it: buildah as it works on a machine without daemon, user namespaces or overlay mounts.

buildah_() {
    buildah --storage-driver vfs "$@"
}

need_buildah() {
    if [[ $(id -u) != 0 ]]; then
        echo "Building without a container engine needs root (chroot and mounts); with Docker: docker build --target serve ." >&2
        exit 2
    fi
    if ! command -v buildah >/dev/null; then
        echo "buildah is missing; on Debian: apt-get install buildah debootstrap (or run deploy/ci-packages.sh)." >&2
        exit 2
    fi
}
