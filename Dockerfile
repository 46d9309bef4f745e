# Aegis for agents that speak HTTP: the daemon alone, as its own user, with its state in one volume.
#
#   docker build -t aegis .
#   docker run --init -p 127.0.0.1:18070:18070 -v aegis-state:/var/lib/aegis \
#       -v "$PWD/aegis.yaml:/var/lib/aegis/aegis.yaml:ro" aegis
#
# (the file in the volume itself works as well; the keys that the daemon makes lie beside it, in the volume)
#
# In the configuration: `server: {listen: 0.0.0.0:18070}` and a token for each agent; backends by `url`, or by a
# `command` that is in the image (build one `FROM aegis` that adds it). amd64 and arm64: everything comes as wheels.
ARG BASE=docker.io/library/python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY aegis_shim ./aegis_shim
COPY aegis_daemon ./aegis_daemon
RUN python3 -m venv /opt/aegis \
    && /opt/aegis/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt . \
    && /opt/aegis/bin/pip uninstall --yes --quiet pip \
    && /opt/aegis/bin/python -m compileall -q /opt/aegis/lib

FROM ${BASE}
COPY --from=build /opt/aegis /opt/aegis
RUN groupadd --gid 10001 aegis \
    && useradd --uid 10001 --no-create-home --gid aegis --home-dir /var/lib/aegis --shell /usr/sbin/nologin aegis \
    && install -d -m 0700 -o aegis -g aegis /var/lib/aegis
ENV PATH=/opt/aegis/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    AEGIS_HOME=/var/lib/aegis
USER 10001:10001
WORKDIR /var/lib/aegis
VOLUME /var/lib/aegis
EXPOSE 18070
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["/bin/sh", "-c", "aegis status --json >/dev/null || exit 1"]
ENTRYPOINT ["aegis"]
CMD ["daemon", "run"]
