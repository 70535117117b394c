# The load generator, the embedded engine and the exporters in one image. Two stages: the first holds build tools, the
# second only Python, the locked wheels and the profiles. Only the reader of streams is compiled, in the first stage:
# every locked version has a wheel for CPython 3.13 on x86-64 and arm64.
#
#   docker build -t tokenswarm:0.1.0 .

# The digest is that of the multi-platform index; to renew: docker buildx imagetools inspect python:3.13.5-slim-bookworm
FROM python:3.13.5-slim-bookworm@sha256:4c2cf9917bd1cbacc5e9b07320025bdb7cdf2df7b0ceaccb55e9dd7e30987419 AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ONLY_BINARY=:all:
WORKDIR /src
# For the reader of streams alone; nothing of it reaches the second stage, so its version may be Debian's newest.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY requirements.lock ./
RUN python -m venv /opt/tokenswarm && /opt/tokenswarm/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY .ci/build_reader.py .ci/
COPY tokenswarm tokenswarm
COPY exporters exporters
COPY configs configs
COPY locustfiles locustfiles
RUN /opt/tokenswarm/bin/pip install --no-deps --no-build-isolation --no-index . \
 && TOKENSWARM_READER=native /opt/tokenswarm/bin/tokenswarm --version \
 && /opt/tokenswarm/bin/pip uninstall --yes pip hatchling editables trove-classifiers \
 && mkdir -p /empty

FROM python:3.13.5-slim-bookworm@sha256:4c2cf9917bd1cbacc5e9b07320025bdb7cdf2df7b0ceaccb55e9dd7e30987419
LABEL org.opencontainers.image.title="tokenswarm" \
      org.opencontainers.image.description="Distributed load testing for LLM servers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/tokenswarm /opt/tokenswarm
COPY configs /app/configs
COPY locustfiles /app/locustfiles
# What may be written, whatever the root file system is mounted as. A named volume takes its owner from these.
COPY --from=build --chown=10001:10001 /empty /home/tokenswarm
COPY --from=build --chown=10001:10001 /empty /results
COPY --from=build --chown=10001:10001 /empty /models
COPY --from=build --chown=10001:10001 /empty /run/tokenswarm
COPY --from=build --chown=10001:10001 /empty /run/tokenswarm-run
COPY --from=build --chown=10001:10001 /empty /run/grafana
ENV PATH=/opt/tokenswarm/bin:$PATH HOME=/home/tokenswarm XDG_CACHE_HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
# All commands end in order on SIGTERM: streams are drained and results written.
STOPSIGNAL SIGTERM
CMD ["tokenswarm", "--help"]
