# shellcheck shell=bash
# What the incidents share. Sourced by bash, not run.
#
# Each incident starts `ringfence simulate` and `ringfence serve` in a folder of its own, breaks something, and runs the commands an
# operator would. `cause` then says what is wrong, and fails where no command showed it.
# shellcheck disable=SC2030,SC2031,SC2034  # the incidents use what is set here
set -euo pipefail

incidents=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$incidents/../.." && pwd)

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
skip() {
    printf 'SKIPPED: %s\n' "$*"
    exit 77
}

if [ -z "${RINGFENCE_BIN:-}" ]; then
    for found in "$root/target/release/ringfence" "$root/target/debug/ringfence" "$(command -v ringfence || true)"; do
        [ -x "$found" ] && RINGFENCE_BIN=$found && break
    done
fi
[ -x "${RINGFENCE_BIN:-}" ] || fail "there is no ringfence: build it, or set RINGFENCE_BIN"
for tool in curl jq python3; do
    command -v "$tool" >/dev/null || skip "there is no $tool here"
done

folder=$(mktemp -d /tmp/ringfence-incident.XXXXXX)
mkdir "$folder/bin"
ln -s "$RINGFENCE_BIN" "$folder/bin/ringfence"
# The log is where an operator looks for it.
printf '#!/bin/sh\nexec cat serve.log\n' >"$folder/bin/journalctl"
chmod +x "$folder/bin/journalctl"
PATH=$folder/bin:$PATH
seen=$folder/seen
: >"$seen"
unset_ours() {
    local name
    for name in $(compgen -e | grep '^RINGFENCE_' || true); do [ "$name" = RINGFENCE_BIN ] || unset "$name"; done
}
unset_ours
export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1

started=()
end() {
    local code=$? one
    set +e
    cd /
    [ -z "${postgres_data:-}" ] || postgres_down 2>/dev/null
    for one in "${started[@]}"; do kill -CONT "$one" && kill "$one"; done 2>/dev/null
    for one in "${started[@]}"; do wait "$one"; done 2>/dev/null
    if mountpoint -q "$folder/disk"; then umount "$folder/disk"; fi 2>/dev/null
    if [ "$code" -ne 0 ] && [ "$code" -ne 77 ]; then
        printf '%s\n' "left for a look: $folder" >&2
        tail -n 5 "$folder"/*/serve.log >&2
    else
        rm -rf "$folder"
    fi
    exit "$code"
}
trap end EXIT
trap 'exit 130' INT TERM

title() { printf '\n== %s ==\n' "$1"; }
# What happens, as the one who breaks things knows it.
happens() { printf '\n-- %s\n' "$*"; }

# operator COMMAND: what an operator types, and sees.
operator() {
    printf '\n$ %s\n' "$1"
    { bash -c "$1" 2>&1 || true; } | sed "s#$folder#/var/lib/ringfence#g" | tee -a "$seen"
}

# cause PATTERN TEXT: the commands so far have shown it.
cause() {
    grep -Eq -- "$1" "$seen" || fail "no command showed /$1/"
    printf '\ncause: %s\n' "$2"
    : >"$seen"
}

# within SECONDS COMMAND…: until it is true.
within() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || fail "did not come true: $*"
        sleep 0.1
    done
}

spare_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# start FOLDER NAME COMMAND…: in the background, its output in FOLDER/NAME.log; leaves its id in `pid`.
start() {
    local at=$1 name=$2
    shift 2
    mkdir -p "$at"
    # What a process of before has said is not this one's.
    : >"$at/$name.out"
    (cd "$at" && exec "$@" >"$at/$name.out" 2>>"$at/$name.log") &
    pid=$!
    started+=("$pid")
}

simulator() {
    start "$folder/sim" simulate ringfence simulate --listen 127.0.0.1:0 --ready-json "$@"
    within 30 grep -q '"ready"' "$folder/sim/simulate.out"
    sim=$(jq -r .url "$folder/sim/simulate.out")
}

# provider PATH JSON: the simulator's controls.
provider() { curl -sf -d "$2" "$sim/_sim/$1" >/dev/null || fail "the simulator refused $1 $2"; }
# settings JSON: of the simulated providers.
settings() { provider config "$1"; }
fault() { provider fault "$1"; }
heal() { fault '{"kind":"none"}'; }

# config FOLDER: writes ringfence.toml there; more of it comes from standard input.
config() {
    mkdir -p "$folder/$1"
    webhooks=$(spare_port)
    cat >"$folder/$1/ringfence.toml" <<TOML
public_url = "http://127.0.0.1:$webhooks"
concurrent = 10

[admin]
token_secret = { env = "RINGFENCE_TOKEN_SECRET" }

[listen]
api      = "127.0.0.1:0"
webhooks = "127.0.0.1:$webhooks"
admin    = "127.0.0.1:$(spare_port)"
client   = "127.0.0.1:0"

[accounts.elevenlabs]
upstream        = "$sim"
api_key         = { env = "ELEVENLABS_API_KEY" }
webhook_secrets = [{ env = "ELEVENLABS_WEBHOOK_SECRET" }]
concurrent      = 10

[accounts.twilio]
upstream    = "$sim"
account_sid = "AC00000000000000000000000000000001"
auth_token  = { env = "TWILIO_AUTH_TOKEN" }

[businesses.acme]
plan = "PRO"

[businesses.birch]
plan = "PRO"

$(cat)
TOML
}
export ELEVENLABS_API_KEY=sk_simulated ELEVENLABS_WEBHOOK_SECRET=wsec_simulated
export TWILIO_AUTH_TOKEN=0123456789abcdef0123456789abcdef
# As in a container: listen.admin answers nobody without a token, so that what an operator types goes through the socket.
export RINGFENCE_TOKEN_SECRET=0123456789abcdef0123456789abcdef

# sidecar FOLDER [COMMAND…]: starts ringfence with its config (after COMMAND, if given), and moves there. Leaves `api`, `admin`, `sidecar_pid`.
sidecar() {
    local at=$folder/$1
    shift
    start "$at" serve "$@" ringfence serve --ready-json
    sidecar_pid=$pid
    within 60 grep -q '"ready"' "$at/serve.out"
    api=$(jq -r .api "$at/serve.out")
    admin=$(jq -r .admin "$at/serve.out")
    SOCKET=$at/$(basename "$(jq -r .adminSocket "$at/serve.out")")
    export SOCKET
    cd "$at"
}

# Numbers that end in 0001 to 0003 are busy, silent and unreachable.
last=2000
# place BUSINESS [N] [HEADER]: N create requests of different calls; says what the app was answered.
place() {
    local business=$1 n=${2:-1} header=${3:-X-App: incident} i
    printf '   %s asks for %s: ' "$business" "$n"
    for ((i = 0; i < n; i++)); do
        last=$((last + 1))
        order "$business" "$(printf '+1555%07d' "$last")" "$header"
    done | sort | uniq -c | awk '{ n = $1; sub(/^ *[0-9]+ /, ""); sub(/ $/, ""); printf "%s%s × %s", sep, n, $0; sep = ", " } END { print "" }' |
        tee "$folder/answers"
    last=$((last + n))
}

# answered TEXT: what the app was answered to what it last asked for.
answered() { [ "$(cat "$folder/answers")" = "$1" ] || fail "the app was not answered $1"; }

# order BUSINESS NUMBER [HEADER]: one create request; prints status and reason.
order() {
    curl -s -m 30 -w '\n%{http_code}' -H 'xi-api-key: sk_simulated' -H "X-Business-Id: $1" -H "${3:-X-App: incident}" \
        -H 'Content-Type: application/json' "http://$api/elevenlabs/v1/convai/twilio/outbound-call" \
        -d "{\"agent_id\":\"agent_$1\",\"agent_phone_number_id\":\"phnum_1\",\"to_number\":\"$2\"}" |
        jq -Rrs 'split("\n") | (.[:-1] | join("\n") | try (fromjson | .error? // "") catch "no JSON") as $error | "\(.[-1]) \($error)"'
}

# calls_at_provider: how many the provider says are live.
calls_at_provider() { curl -s "$sim/_sim/state" | jq '[.calls[] | select(.live)] | length'; }
none_live() { [ "$(calls_at_provider)" -eq 0 ]; }
# status_has TEXT: in the JSON of /status, which the commands read too.
status_has() { curl -s --unix-socket "$SOCKET" http://localhost/status | grep -qF -- "$1"; }
# hang_up: everybody at the other end hangs up.
hang_up() {
    local id
    for id in $(curl -s "$sim/_sim/state" | jq -r '.calls[] | select(.live or .arriving) | .sid // .conversation_id // .talk // empty'); do
        curl -s -d "{\"id\":\"$id\"}" "$sim/_sim/end" >/dev/null
    done
}

redis() {
    command -v redis-server >/dev/null || skip "there is no redis-server here (Debian: redis-server)"
    redis_port=$(spare_port)
    start "$folder/redis" redis redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --maxmemory-policy noeviction --dir "$folder/redis"
    redis_pid=$pid
    export REDIS_URL=redis://127.0.0.1:$redis_port
    within 30 redis-cli -p "$redis_port" ping
}

# As root Postgres runs as its own user.
as_postgres() { if [ "$(id -u)" -eq 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"; else "$@"; fi; }
postgres() {
    local programs
    programs=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1) || true
    [ -n "$programs" ] || skip "there is no Postgres here (Debian: postgresql)"
    PATH=$programs:$PATH
    postgres_data=$folder/pg
    mkdir "$postgres_data"
    chmod 755 "$folder"
    if [ "$(id -u)" -eq 0 ]; then chown postgres "$postgres_data"; fi
    (cd / && as_postgres initdb -D "$postgres_data/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >/dev/null)
    postgres_port=$(spare_port)
    export DATABASE_URL=postgres://postgres@127.0.0.1:$postgres_port/postgres
    postgres_up
}
postgres_up() {
    (cd / && as_postgres pg_ctl -D "$postgres_data/data" -l "$postgres_data/log" -w -s start \
        -o "-p $postgres_port -k $postgres_data -c listen_addresses=127.0.0.1 -c fsync=off")
}
postgres_down() { (cd / && as_postgres pg_ctl -D "$postgres_data/data" -m immediate -s stop); }

# crash PID: as by kill -9.
crash() { { kill -9 "$1" && wait "$1"; } 2>/dev/null || true; }

# webhook BYTES: a signed event of ElevenLabs with so large a body; prints the status of its answer.
webhook() {
    python3 - "$webhooks" "$1" <<'PY'
import hashlib, hmac, json, sys, time, urllib.request
port, size = sys.argv[1], int(sys.argv[2])
body = json.dumps({"type": "post_call_audio", "event_timestamp": int(time.time()),
                   "data": {"agent_id": "agent_acme", "conversation_id": "conv_large", "full_audio": "A" * size}}).encode()
stamp = str(int(time.time()))
mac = hmac.new(b"wsec_simulated", stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
headers = {"ElevenLabs-Signature": f"t={stamp},v0={mac}", "Content-Type": "application/json"}
print(urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/webhooks/elevenlabs", body, headers)).status)
PY
}

# app PORT: one that takes everything, and writes the size of each body to app.out.
app() {
    start "$folder/app" app python3 -u -c '
import http.server, sys
class Takes(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        print(self.headers["Content-Length"])
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Takes).serve_forever()' "$1"
}
