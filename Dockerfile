# syntax=docker/dockerfile:1
# The relay and nothing else. Raise the two versions together with the toolchain; to pin harder, append
# @sha256:… of the image you have reviewed.
ARG RUST_VERSION=1.95.0
ARG DEBIAN_VERSION=12.12

FROM rust:${RUST_VERSION}-slim-bookworm AS build
# jemalloc is built with make.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# --locked: what was tested is what is built. The cache mounts keep a rebuild to what changed, and are not
# part of the image; so the binary has to be copied out of them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package outboxd --bin outboxd \
    && install -D -m 0755 target/release/outboxd /out/outboxd

# Same Debian release as the build stage, so that the binary finds the libc it was linked against.
FROM debian:${DEBIAN_VERSION}-slim
LABEL org.opencontainers.image.title="outboxd" \
      org.opencontainers.image.description="Transactional outbox relay: PostgreSQL rows in, confirmed RabbitMQ messages out" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"

# Fixed and numeric: Kubernetes can check runAsNonRoot, and secret files can be owned by it.
RUN groupadd --gid 10001 outboxd \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin outboxd

# Public certificate authorities, for servers that are not signed by a private one.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/outboxd /usr/bin/outboxd
COPY config/outboxd.toml /etc/outboxd/outboxd.toml

USER 10001:10001
# SIGTERM drains: claim nothing new, settle what was confirmed, close. Give it more time than
# relay.shutdown_grace before the engine kills (docker stop --timeout, stop_grace_period).
STOPSIGNAL SIGTERM
# Live, not ready: a relay that waits for its broker is well, and restarting it would not help.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/usr/bin/outboxd", "healthcheck", "--live"]
ENTRYPOINT ["/usr/bin/outboxd"]
CMD ["run"]
