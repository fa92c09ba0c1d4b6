# Builds Herald and puts the one binary into a small image. Data is kept in /var/lib/herald.
#
#   docker build -t herald .
#   docker run -p 8080:8080 -v herald:/var/lib/herald herald
FROM rust:1.95-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends -y gcc g++ make perl && rm -rf /var/lib/apt/lists/*
WORKDIR /herald
COPY . .
RUN cargo build --locked --profile dist -p herald-node --bin herald

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends -y ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/herald --create-home --shell /usr/sbin/nologin herald
COPY --from=build /herald/target/dist/herald /usr/local/bin/herald
USER 10001
WORKDIR /var/lib/herald
ENV HERALD_STORAGE=embedded:/var/lib/herald/data \
    HERALD_LISTEN=0.0.0.0:8080 \
    HERALD_OPS_LISTEN=0.0.0.0:9090
EXPOSE 8080 9090
VOLUME ["/var/lib/herald"]
# SIGTERM drains; the orchestrator should allow more than stop_deadline_ms for it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/herald"]
CMD ["run"]
