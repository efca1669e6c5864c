#!/usr/bin/env bash
# Compares ringfence with nginx, HAProxy and nginx + Lua + Redis, and measures its memory. Installs what that needs.
#
#     bash benches/compare/run.sh                      # speed: 5 rounds of all cases, about 10 minutes after the build
#     bash benches/compare/run.sh --quick              # 2 short rounds of all cases, about 2 minutes; arguments go to compare.py
#     bash benches/compare/run.sh --only tls events    # cases whose name has one of these in it; --list prints the names
#     bash benches/compare/run.sh memory               # resident memory at rest, of open calls and of idle connections
#     bash benches/compare/run.sh page                 # CPU and memory while operators watch the page
#     RINGFENCE_BIN=PATH bash benches/compare/run.sh   # measures that program instead of building one
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../deploy/common.sh"

part=compare
if [ "${1:-}" = memory ] || [ "${1:-}" = page ]; then
    part=$1
    shift
fi

# Where systemd runs, Debian also starts nginx, haproxy and redis as services. What is measured is started by hand, on ports
# of its own.
measured_packages() {
    local missing=() name
    for name in nginx haproxy redis-server wrk python3 openssl; do
        command -v "$name" >/dev/null || missing+=("$name")
    done
    [ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] || missing+=(libnginx-mod-http-lua)
    [ -e /usr/share/lua/5.1/nginx/redis.lua ] || missing+=(lua-nginx-redis)
    compgen -G '/usr/lib/*/lua/5.1/cjson.so' >/dev/null || missing+=(lua-cjson)
    [ ${#missing[@]} -eq 0 ] || packages "what is compared" "${missing[@]}"
}

build_packages "C compiler"
if [ "$part" = compare ]; then
    measured_packages
elif ! command -v python3 >/dev/null; then
    packages "the measuring script" python3
fi
if [ -n "${RINGFENCE_BIN:-}" ]; then
    export RINGFENCE_BIN
    [ -x "$RINGFENCE_BIN" ] || die "RINGFENCE_BIN is no program: $RINGFENCE_BIN" "unset it, then ringfence is built"
else
    rust
    say "cargo build --release"
    build --release
fi
exec python3 "$here/$part.py" "$@" </dev/null
