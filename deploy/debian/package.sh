#!/usr/bin/env bash
# Makes the Debian package: builds the program, lets it write its man pages and completions, and calls cargo-deb.
#
#     bash deploy/debian/package.sh                       # target/debian/ringfence_….deb
#     bash deploy/debian/package.sh --files PROGRAM TO    # only what PROGRAM writes, into the folder TO
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# files PROGRAM TO: man pages and completions.
files() {
    local program=$1 to=$2
    rm -rf "$to"
    mkdir -p "$to"/{man,bash,zsh,fish}
    "$program" man "$to/man"
    "$program" completions bash >"$to/bash/ringfence"
    "$program" completions zsh >"$to/zsh/_ringfence"
    "$program" completions fish >"$to/fish/ringfence.fish"
}

case ${1:-} in
--files)
    files "$2" "$3"
    ;;
'')
    cd "$root"
    cargo build --release --locked --bin ringfence
    files target/release/ringfence target/debian-files
    cargo deb --no-build --locked
    ;;
*)
    echo "usage: package.sh [--files PROGRAM FOLDER]" >&2
    exit 2
    ;;
esac
