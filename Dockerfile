# A small image of ringfence: one program over Debian's C library, no shell, no root. docs/deploy.md says how to run it.
#
#     docker build -t ringfence .        (or: buildah bud -t ringfence .)
#
# Both base images are arguments, so that a mirror or another tag needs no change here. Their C libraries must be of one Debian.
ARG BUILD_IMAGE=docker.io/library/rust:1.95-slim-bookworm
ARG RUN_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# SQLite, ring and the allocator are C: the image of Rust has the compiler.
COPY . .
RUN cargo build --release --locked --bin ringfence && install -D -m 0755 target/release/ringfence /out/usr/bin/ringfence && \
    install -D -m 0644 config/reference.toml /out/usr/share/doc/ringfence/reference.toml && \
    install -d -m 0700 /out/var/lib/ringfence

FROM ${RUN_IMAGE}
LABEL org.opencontainers.image.title="ringfence" \
      org.opencontainers.image.description="A sidecar that fences the calls of voice products inside the capacity they bought" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/usr/ /usr/
# Whether a copy keeps the owner differs from builder to builder.
COPY --from=build --chown=65532:65532 /out/var/lib/ringfence/ /var/lib/ringfence/
# 65532 is `nonroot` of the image; a number, so that Kubernetes can tell that it is not root.
USER 65532:65532
# The database, the spool, the journal and the operators' socket go here; all else may be read-only.
WORKDIR /var/lib/ringfence
# Reached from outside the container, and from nowhere else but through published ports. A variable wins over the file; an empty one leaves it to
# the file. listen.admin stays on loopback, since it needs admin.token_secret elsewhere; `exec` reaches it through the operators' socket.
ENV RINGFENCE_LISTEN_API=0.0.0.0:8080 \
    RINGFENCE_LISTEN_WEBHOOKS=0.0.0.0:8081 \
    RINGFENCE_LISTEN_CLIENT=0.0.0.0:8082 \
    RINGFENCE_LISTEN_PROBES=0.0.0.0:9901
# apps, webhooks, operators, live transcripts, probes
EXPOSE 8080 8081 9900 8082 9901
STOPSIGNAL SIGTERM
# Over the operators' socket, so that neither a token nor TLS is in its way. Kubernetes has probes of its own, and does not look at it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/usr/bin/ringfence", "health"]
ENTRYPOINT ["/usr/bin/ringfence"]
CMD ["serve"]
