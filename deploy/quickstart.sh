#!/usr/bin/env bash
# From a machine with Rust and nothing else to a running demo:
#
#     bash deploy/quickstart.sh             # as root, or as a user with sudo
#     bash deploy/quickstart.sh --stay      # arguments go to `ringfence demo`
#
# Safe to run again: what is there already is neither installed nor built twice.
set -euo pipefail
# shellcheck source=deploy/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Built once, to be seen: neither what makes the next build faster nor what a debugger reads.
export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0

rust
build_packages "[1/3] C compiler (about 30 s)"
say "[2/3] Build, dev profile (the first time about 8 min on two cores; for production: cargo build --release)"
build
say "[3/3] Demo (about 15 s, no network): $RINGFENCE_BIN demo${*:+ $*}"
exec "$RINGFENCE_BIN" demo "$@"
