#!/usr/bin/env bash
# Compares ringfence with nginx, HAProxy and nginx + Lua + Redis, and measures its memory. Installs what that needs.
#
#     bash benches/compare/run.sh                  # speed: 5 rounds of 7 contenders, about 6 minutes after the build
#     bash benches/compare/run.sh --rounds 1       # arguments go to compare.py
#     bash benches/compare/run.sh memory           # resident memory at rest, of open calls and of idle connections
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../deploy/common.sh"

part=compare
if [ "${1:-}" = memory ]; then
    part=memory
    shift
fi

# Where systemd runs, Debian also starts nginx, haproxy and redis as services. What is measured is started by hand, on ports
# of its own.
measured_packages() {
    local missing=() name
    for name in nginx haproxy redis-server wrk python3; do
        command -v "$name" >/dev/null || missing+=("$name")
    done
    [ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] || missing+=(libnginx-mod-http-lua)
    [ -e /usr/share/lua/5.1/nginx/redis.lua ] || missing+=(lua-nginx-redis)
    compgen -G '/usr/lib/*/lua/5.1/cjson.so' >/dev/null || missing+=(lua-cjson)
    [ ${#missing[@]} -eq 0 ] || packages "what is compared" "${missing[@]}"
}

rust
build_packages "C compiler"
if [ "$part" = compare ]; then
    measured_packages
elif ! command -v python3 >/dev/null; then
    packages "the measuring script" python3
fi
say "cargo build --release"
build --release
exec python3 "$here/$part.py" "$@" </dev/null
