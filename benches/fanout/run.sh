#!/usr/bin/env bash
# Measures how fast what is said in calls reaches those who follow them, beside a Node server with ws. Installs what that needs.
#
#     bash benches/fanout/run.sh        # 3 rounds of 4 shapes
#     bash benches/fanout/run.sh 1      # so many rounds
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../deploy/common.sh"

# Each side of 10,000 sockets.
files=10500
ulimit -n "$(ulimit -Hn)"
[ "$(ulimit -n)" = unlimited ] || [ "$(ulimit -n)" -ge $files ] ||
    die "a process may have $(ulimit -n) files open, and $files are needed" "as root: ulimit -Hn $files, then run this again"

rust
build_packages "C compiler and cmake"
missing=()
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
[ ${#missing[@]} -eq 0 ] || packages "Node" "${missing[@]}"
if ! cmp -s "$here/package-lock.json" "$here/node_modules/installed.json"; then
    say "ws: installing into benches/fanout/node_modules"
    npm ci --prefix "$here" --ignore-scripts --no-audit --no-fund --loglevel error </dev/null >&2 ||
        die "npm could not install ws" "it needs a way to the npm registry"
    cp "$here/package-lock.json" "$here/node_modules/installed.json"
fi
say "cargo bench"
exec cargo bench --locked --manifest-path "$root/Cargo.toml" --bench fanout -- "$@" </dev/null
