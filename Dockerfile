# Images for the agent and for the aggregator, on Debian's own Python:
#   docker build --target agent -t covey-agent .
#   docker build --target aggregator -t covey .

FROM debian:bookworm-slim AS base
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/covey --create-home covey
ENV PATH=/opt/covey/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# The wheel, built once for both.
FROM base AS wheel
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir -c constraints.txt build hatchling
COPY . ./
RUN /opt/build/bin/python -m build --wheel --no-isolation --outdir /dist \
 && python3 -m venv /opt/covey

FROM wheel AS agent-installed
RUN /opt/covey/bin/pip install --no-cache-dir -c constraints.txt /dist/covey-*.whl

FROM wheel AS aggregator-installed
RUN set -- /dist/covey-*.whl \
 && /opt/covey/bin/pip install --no-cache-dir -c constraints.txt "$1[aggregator,modelkit]"

FROM base AS agent
COPY --from=agent-installed /opt/covey /opt/covey
USER covey
WORKDIR /var/lib/covey
VOLUME /var/lib/covey
HEALTHCHECK --interval=60s --timeout=10s --start-period=30s CMD ["covey-agent", "status"]
ENTRYPOINT ["covey-agent"]
CMD ["run"]

FROM base AS aggregator
COPY --from=aggregator-installed /opt/covey /opt/covey
USER covey
WORKDIR /var/lib/covey
VOLUME /var/lib/covey
HEALTHCHECK --interval=60s --timeout=10s --start-period=30s CMD ["covey", "--version"]
ENTRYPOINT ["covey"]
CMD ["serve"]
