#!/usr/bin/env bash
# Builds a program that needs no shared library: for Alpine, for images from scratch, for systems whose glibc is older than this machine's.
#
#     bash deploy/static.sh                    # prints where the program is; as root, or as a user with sudo
#     bash deploy/static.sh --profile dev      # arguments go to `cargo build`, instead of --release
set -euo pipefail
# shellcheck source=deploy/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

rust
build_packages "C compiler"
[ $# -gt 0 ] || set -- --release
# Named, so that the flags are not those of build scripts and macros, which the compiler has to load.
target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static"
build --target "$target" --target-dir "$root/target/static" "$@"
printf '%s\n' "$RINGFENCE_BIN"
