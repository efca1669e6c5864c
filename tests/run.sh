#!/usr/bin/env bash
# Runs the tests, and installs first what they need:
#
#     bash tests/run.sh                     # everything
#     bash tests/run.sh rust                # cargo test
#     bash tests/run.sh rust NAME           # cargo test NAME: arguments go to cargo test
#     bash tests/run.sh rust -- --nocapture
#     bash tests/run.sh sdk                 # the providers' own SDKs against the built program
#     bash tests/run.sh sdk -k twilio       # arguments go to python's unittest
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../deploy/common.sh"

part=${1:-all}
[ $# -eq 0 ] || shift
case $part in
all) [ $# -eq 0 ] || die "arguments need a part: rust or sdk" "tests/run.sh rust $*" ;;
rust | sdk) ;;
*) die "there is no part \`$part\`" "tests/run.sh [rust|sdk] [arguments]" ;;
esac

test_packages() {
    local missing=()
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
    command -v openssl >/dev/null || missing+=(openssl)
    command -v curl >/dev/null || missing+=(curl)
    command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing+=(nginx-light)
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
    [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
    command -v redis-server >/dev/null || missing+=(redis-server)
    if [ "$part" != sdk ]; then
        command -v chromium >/dev/null || command -v chromium-browser >/dev/null || missing+=(chromium)
    fi
    if [ "$part" != rust ]; then
        command -v node >/dev/null || missing+=(nodejs)
        command -v npm >/dev/null || missing+=(npm)
    fi
    [ ${#missing[@]} -eq 0 ] || packages "tools of the tests" "${missing[@]}"
}

# A virtual environment, since Debian's own Python refuses packages from outside (PEP 668).
sdks() {
    local venv=$root/.venv wanted=$root/tests/sdk/requirements.txt
    python=$venv/bin/python
    if ! cmp -s "$wanted" "$venv/installed.txt" || ! "$python" -c '' 2>/dev/null; then
        say "Python SDKs: installing into .venv"
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$python" -m pip install --quiet --disable-pip-version-check --requirement "$wanted" </dev/null ||
            die "pip could not install the SDKs" "it needs a way to the Python package index"
        cp "$wanted" "$venv/installed.txt"
    fi
    # The lock file names no registry, so npm asks whichever this machine is set to, and checks what it gets by its hash.
    local sdk=$root/tests/sdk
    if ! cmp -s "$sdk/package-lock.json" "$sdk/node_modules/installed.json"; then
        say "Node SDKs: installing into tests/sdk/node_modules"
        npm ci --prefix "$sdk" --ignore-scripts --no-audit --no-fund --loglevel error </dev/null >&2 ||
            die "npm could not install the SDKs" "it needs a way to the npm registry"
        cp "$sdk/package-lock.json" "$sdk/node_modules/installed.json"
    fi
}

rust
build_packages "C compiler"
test_packages

if [ "$part" != sdk ]; then
    say "cargo test"
    cargo test --locked --manifest-path "$root/Cargo.toml" "$@" </dev/null
    if [ $# -eq 0 ]; then
        say "cargo test, over Postgres"
        RINGFENCE_TEST_STORE=postgres cargo test --locked --manifest-path "$root/Cargo.toml" --test it -- \
            acceptance:: outbound_faults:: records:: reposts:: transcripts:: webhooks:: </dev/null
    fi
fi
if [ "$part" != rust ]; then
    sdks
    build
    say "SDK tests"
    cd "$root/tests/sdk"
    "$python" -W ignore::DeprecationWarning -m unittest "$@" </dev/null
fi
