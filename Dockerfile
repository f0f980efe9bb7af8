# The program in an image with nothing else that could be run: docker build --tag portcullis:0.1.0 .
FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock clippy.toml ./
COPY bench bench
COPY crates crates
COPY e2e e2e
COPY xtask xtask
RUN cargo build --release --locked --package portcullis
RUN mkdir --mode=0700 /data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/portcullis /usr/local/bin/portcullis
# What a volume mounted there begins with: a folder of its user.
COPY --from=build --chown=65532:65532 /data /var/lib/portcullis
USER 65532:65532
ENV PORTCULLIS_DATA_FOLDER=/var/lib/portcullis
EXPOSE 7480
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/portcullis"]
# Loopback within the container, if nothing else is said: plain HTTP for others has to be asked for.
CMD ["serve"]
