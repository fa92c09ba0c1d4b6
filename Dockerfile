# Builds Herald and puts the one binary into a small image. It runs one node, with its data in /var/lib/herald.
#
#   docker build -t herald .
#   (umask 077; echo "hk_root_$(openssl rand -hex 16)" >operator.key) && sudo chown 10001 operator.key
#   docker run -p 8080:8080 -v herald:/var/lib/herald -v "$PWD/operator.key:/etc/herald/operator.key:ro" herald
#
# The file holds the first operator's key, with which tenants and all other keys are made; without it the image does not
# start. Settings are variables, such as -e HERALD_EMAIL__URL=smtp://mail.example.org, or a file: mount it at
# /etc/herald/herald.toml, name the operator_key_file in it, and put behind the image's name
# "run --config /etc/herald/herald.toml". Where data lies and what is listened on comes from below all the same.
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
CMD ["run", "--no-config", "--set", "operator_key_file=/etc/herald/operator.key"]
