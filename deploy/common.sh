# shellcheck shell=bash
# What deploy/quickstart.sh, tests/run.sh and .ci/run share. Sourced by bash, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# say TEXT: one line to a person; standard output stays the program's own.
say() { printf '%s\n' "$*" >&2; }

# die TEXT HINT: what is wrong, and what to do about it.
die() {
    say "error: $1"
    say " hint: $2"
    exit 1
}

# packages TITLE PACKAGE…: installs Debian packages, or explains why it cannot.
packages() {
    local title=$1 log as_root=()
    shift
    command -v apt-get >/dev/null ||
        die "missing: $*, and there is no apt-get here to install them" \
            "install them (Debian's names) with this system's own package manager, then run this again"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            die "missing: $*, and installing them needs root, but there is no sudo" \
                "as root: apt-get install $*"
        as_root=(sudo)
    fi
    say "$title: installing $*"
    log=$(mktemp)
    apt() {
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 "$@" \
            </dev/null >>"$log" 2>&1
    }
    # An update that fails is no reason to stop: the packages may be known already.
    apt update || true
    if ! apt install --yes --no-install-recommends "$@"; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        die "apt-get could not install: $*" \
            "its last lines are above; without a network (or behind a proxy apt does not know) it cannot reach the mirrors"
    fi
    rm -f "$log"
}

# build_packages TITLE: a C compiler (SQLite, ring and the allocator are C), and the root certificates cargo needs.
build_packages() {
    local missing=()
    if ! printf '#include <stdlib.h>\nint main(void) { return 0; }\n' |
        cc -x c - -o /dev/null 2>/dev/null; then
        missing+=(gcc libc6-dev)
    fi
    [ -e /etc/ssl/cert.pem ] || [ -e /etc/ssl/certs/ca-certificates.crt ] ||
        [ -e /etc/pki/tls/certs/ca-bundle.crt ] || missing+=(ca-certificates)
    if [ ${#missing[@]} -eq 0 ]; then
        say "$1: already here"
    else
        packages "$1" "${missing[@]}"
    fi
}

# rust: puts cargo on PATH and checks that it is new enough.
rust() {
    local wanted found
    command -v cargo >/dev/null || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    command -v cargo >/dev/null ||
        die "there is no cargo on PATH or in ${CARGO_HOME:-$HOME/.cargo}/bin" \
            "install Rust from https://rustup.rs, then run this again${SUDO_USER:+; if $SUDO_USER has it, without sudo}"
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$root/Cargo.toml")
    found=$(rustc --version | cut -d ' ' -f 2) ||
        die "rustc does not run" "rustup default stable"
    [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ] ||
        die "Rust $wanted or newer is needed; this is $found ($(command -v cargo))" \
            "rustup update stable   (a cargo that came from apt is too old: https://rustup.rs)"
}

# build [--release]: builds the program (in the dev profile) and leaves its path in RINGFENCE_BIN. Cargo
# itself says where it is, so CARGO_TARGET_DIR and every other way to move it are respected.
build() {
    RINGFENCE_BIN=$(cargo build --locked --bin ringfence --manifest-path "$root/Cargo.toml" "$@" \
        --message-format json-render-diagnostics </dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p') ||
        die "the build failed" \
            "cargo's message is above; if it could not download something, it needs a way to the registry of crates"
    export RINGFENCE_BIN
}
