# Four images from one file:
#   docker build --target serve -t semiseg-serve .            a bundle in, HTTP out, on processors; no PyTorch
#   docker build --target serve-gpu -t semiseg-serve-gpu .    the same on NVIDIA GPUs
#   docker build --target gateway -t semiseg-gateway .        between a PACS and any number of servers; no engine
#   docker build --target train -t semiseg-train .            training and export
# deploy/README.md says how to run them, and how to build without a container engine.
#
# Arguments: BASE     a Debian 12 image.
#            RUNTIME  of the train image: `serve` for the CPU build of ONNX Runtime, `gpu` for the CUDA build.
#            TORCH_INDEX  an extra package index to take torch from (train image on machines without a GPU).
#            VERSION, REVISION, SOURCE_DATE_EPOCH  what labels and bill of materials say.
# Secrets, all optional: pip_conf (a pip.conf), pip_env (lines of `export PIP_...=...`), ca_certificates (a PEM bundle).
# They exist only while the builder runs; nothing of them is written into an image.
ARG BASE=debian:bookworm-slim

# hadolint ignore=DL3008
FROM ${BASE} AS python
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log

FROM python AS builder
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY deploy/pip_install.sh deploy/viewer.py deploy/
COPY semiseg semiseg
COPY trainer trainer
COPY exporter exporter
COPY server server
COPY cli cli

# The two images of a hospital's everyday are made of exactly the files whose hashes are in deploy/*.lock.
FROM builder AS serve-environment
COPY deploy/serve.lock deploy/serve.lock
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=pip_env --mount=type=secret,id=ca_certificates \
    sh deploy/pip_install.sh /opt/semiseg . deploy/serve.lock

FROM builder AS gateway-environment
COPY deploy/gateway.lock deploy/gateway.lock
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=pip_env --mount=type=secret,id=ca_certificates \
    sh deploy/pip_install.sh /opt/semiseg . deploy/gateway.lock

FROM builder AS serve-gpu-environment
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=pip_env --mount=type=secret,id=ca_certificates \
    sh deploy/pip_install.sh /opt/semiseg ".[gpu]"

FROM builder AS train-environment
ARG RUNTIME=serve
ARG TORCH_INDEX=
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=pip_env --mount=type=secret,id=ca_certificates \
    sh deploy/pip_install.sh /opt/semiseg ".[train,export,${RUNTIME}]"

# What all images share: a user without rights, no telemetry, nothing fetched at run time.
FROM python AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="semiseg" \
      org.opencontainers.image.description="Semi-supervised 3D medical image segmentation. Research use only." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 semiseg \
    && useradd --uid 10001 --gid semiseg --no-create-home --home-dir /var/lib/semiseg --shell /usr/sbin/nologin semiseg \
    && install -d -o semiseg -g semiseg -m 0750 /var/lib/semiseg
# The root file system may be read-only: everything that is written goes to /var/lib/semiseg. TMPDIR is the volume itself
# and not a folder in it, because an empty volume (a tmpfs, an emptyDir) would hide a folder made here.
ENV PATH=/opt/semiseg/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/semiseg \
    TMPDIR=/var/lib/semiseg \
    BENTOML_HOME=/var/lib/semiseg/bentoml \
    BENTOML_DO_NOT_TRACK=True \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    MPLCONFIGDIR=/var/lib/semiseg/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
VOLUME ["/var/lib/semiseg"]
WORKDIR /var/lib/semiseg
ENTRYPOINT ["semiseg"]

FROM runtime AS train
COPY --from=train-environment /opt/semiseg /opt/semiseg
COPY deploy/sbom.py /tmp/sbom.py
ARG SOURCE_DATE_EPOCH
RUN python /tmp/sbom.py semiseg-train >/usr/share/semiseg-train.spdx.json && rm /tmp/sbom.py
USER 10001:10001
CMD ["--help"]

FROM runtime AS gateway
COPY --from=gateway-environment /opt/semiseg /opt/semiseg
COPY deploy/sbom.py /tmp/sbom.py
ARG SOURCE_DATE_EPOCH
RUN python /tmp/sbom.py semiseg-gateway >/usr/share/semiseg-gateway.spdx.json && rm /tmp/sbom.py
USER 10001:10001
EXPOSE 11112 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/livez', timeout=4)"]
CMD ["gateway", "--config", "/config/gateway.yaml"]

FROM runtime AS serving
EXPOSE 3000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:3000/livez', timeout=4)"]
CMD ["serve", "/bundle", "--host", "0.0.0.0", "--port", "3000"]

FROM serving AS serve-gpu
COPY --from=serve-gpu-environment /opt/semiseg /opt/semiseg
COPY deploy/sbom.py /tmp/sbom.py
ARG SOURCE_DATE_EPOCH
RUN python /tmp/sbom.py semiseg-serve-gpu >/usr/share/semiseg-serve-gpu.spdx.json && rm /tmp/sbom.py
USER 10001:10001

# Last, so that a build without --target makes it.
FROM serving AS serve
COPY --from=serve-environment /opt/semiseg /opt/semiseg
COPY deploy/sbom.py /tmp/sbom.py
ARG SOURCE_DATE_EPOCH
RUN python /tmp/sbom.py semiseg-serve >/usr/share/semiseg-serve.spdx.json && rm /tmp/sbom.py
USER 10001:10001
