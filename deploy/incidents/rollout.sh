#!/usr/bin/env bash
# Two replicas over one Postgres are rolled from the version before to this one and back, one after the other, while an app places calls and
# the provider posts its webhooks. `run.sh` leaves it out, since it needs the older program:
#
#     git worktree add ../ringfence-before v0.1.0                                  # or any commit
#     cargo build --locked --manifest-path ../ringfence-before/Cargo.toml --bin ringfence
#     RINGFENCE_OLD_BIN=$PWD/../ringfence-before/target/debug/ringfence bash deploy/incidents/rollout.sh
#
# Every create has to be answered by one of the two, no call may be dialled twice or counted by nobody, the limit has to hold throughout, and
# every webhook that was acknowledged has to be in the record and to reach the app once.
old=${RINGFENCE_OLD_BIN:-}
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "upgrade and rollback"
[ -x "$old" ] || skip "RINGFENCE_OLD_BIN names no program of the version before"
limit=10

# put FILE TEXT: at once, so that whoever reads it never sees half of it.
put() { printf %s "$2" >"$1.new" && mv "$1.new" "$1"; }

# place_all FROM: creates without end, numbered from FROM. Where a replica refuses the connection the other one is asked, as a Service does.
place_all() {
    local n=$1 replica answer at="$folder/load"
    while [ ! -e "$folder/enough" ]; do
        n=$((n + 1))
        for replica in $((n % 2)) $(((n + 1) % 2)); do
            api=$(cat "$folder/api-$replica")
            answer=$(order "$([ $((n % 3)) -eq 0 ] && echo birch || echo acme)" "$(printf '+1555%07d' $((30000 + n * 10)))" "Idempotency-Key: order-$n") || true
            case $answer in 000*) ;; *) break ;; esac
        done
        printf '%s %s\n' "$(cat "$folder/phase")" "$answer" >>"$at"
    done
}

# service PORT APP_PORT WEBHOOKS_A WEBHOOKS_B: what stands before the two replicas, and the app behind them. A webhook goes to one of the
# replicas, and to the other where that refuses the connection. Writes `acknowledged CONVERSATION` and `delivered CONVERSATION ID` to service.out.
service() {
    start "$folder/service" service python3 -u -c '
import http.client, http.server, json, sys, threading
port, app_port, *replicas = map(int, sys.argv[1:])
turn = [0]
def say(*words): sys.stdout.write(" ".join(words) + "\n")  # whole lines, whichever thread
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def take(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        return body, json.loads(body)["data"]["conversation_id"]
    def reply(self, status):
        self.send_response(status); self.send_header("Content-Length", "0"); self.end_headers()
class App(Handler):
    def do_POST(self):
        _, conversation = self.take()
        say("delivered", conversation, self.headers["X-Ringfence-Delivery"])
        self.reply(200)
class Service(Handler):
    def do_POST(self):
        body, conversation = self.take()
        turn[0] += 1
        for replica in (replicas[turn[0] % 2], replicas[(turn[0] + 1) % 2]):
            one = http.client.HTTPConnection("127.0.0.1", replica, timeout=20)
            try:
                one.request("POST", self.path, body, {name: self.headers[name] for name in ("Content-Type", "ElevenLabs-Signature")})
                status = one.getresponse().status
                break
            except ConnectionRefusedError:
                status = 503
            except OSError:
                status = 502
                break
            finally:
                one.close()
        say("acknowledged" if status == 200 else f"answered-{status}", conversation)
        self.reply(status)
threading.Thread(target=http.server.ThreadingHTTPServer(("127.0.0.1", app_port), App).serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", port), Service).serve_forever()' "$@"
}

# replica FOLDER N [COMMAND…]: starts one and tells the app where it is.
replica() {
    local of=$1 n=$2
    shift 2
    sidecar "$of" "$@"
    put "$folder/api-$n" "$api"
    pids[n]=$sidecar_pid
}

# phase NAME: the app goes on for a while, and calls were placed in it.
phase() {
    put "$folder/phase" "$1"
    sleep 5
    grep -q "^$1 200" "$folder/load" || fail "no call was placed: $1"
}

# roll FOLDER N WHICH: as Kubernetes replaces a pod.
roll() {
    happens "replica $1 is stopped, and started again as the $3 program"
    kill -TERM "${pids[$2]}"
    wait "${pids[$2]}" || fail "replica $1 did not drain"
    replica "$1" "$2" env PATH="$folder/$3:$PATH"
}

# More than ringfence may place, so that the provider itself refuses nothing.
simulator --talk-ms 1500 --concurrent 30
postgres
mkdir "$folder/older" "$folder/newer"
ln -s "$old" "$folder/older/ringfence"
ln -s "$RINGFENCE_BIN" "$folder/newer/ringfence"
front=$(spare_port) app_port=$(spare_port) behind=() pids=()
for one in a b; do
    config "$one" <<<"[store]
url = { env = \"DATABASE_URL\" }
[gate]
backend = \"database\"
[plans]
PRO = { concurrent = 8 }
[app]
forward_url = \"http://127.0.0.1:$app_port\""
    sed -i "s#^public_url = .*#public_url = \"http://127.0.0.1:$front\"#" "$folder/$one/ringfence.toml"
    behind+=("$webhooks")
done
service "$front" "$app_port" "${behind[@]}"
settings "{\"el_events_url\":\"http://127.0.0.1:$front/webhooks/elevenlabs\",\"el_retry_ms\":[500,1000,2000,4000]}"
replica a 0 env PATH="$folder/older:$PATH"
replica b 1 env PATH="$folder/older:$PATH"
happens "older program: $("$old" --version); newer: $("$RINGFENCE_BIN" --version). The app places calls at both, as many as it can"
: >"$folder/load"
put "$folder/phase" older
apps=()
for from in 0 1000 2000 3000; do
    place_all "$from" &
    apps+=("$!")
done
started+=("${apps[@]}")
phase older
roll a 0 newer
phase upgrading
roll b 1 newer
phase newer
roll a 0 older
phase reverting
roll b 1 older
phase reverted
touch "$folder/enough"
wait "${apps[@]}"

happens "what the app was answered, by phase"
sort "$folder/load" | uniq -c
operator 'ringfence status'
placed=$(grep -c ' 200' "$folder/load")
if grep -Ev ' (200|503 (BUSINESS_CONCURRENT_LIMIT_EXCEEDED|GLOBAL_CAPACITY_EXCEEDED))' "$folder/load"; then fail "the app saw something else than a call or a full limit"; fi
within 60 bash -c "! ringfence calls list | grep -q ^c_"
counts=$(curl -s "$sim/_sim/state" | jq .counts)
[ "$(jq .creates_el <<<"$counts")" -eq "$placed" ] || fail "the app has $placed calls, the provider dialled $(jq .creates_el <<<"$counts")"
[ "$(jq .el_live_max <<<"$counts")" -le "$limit" ] || fail "the provider had $(jq .el_live_max <<<"$counts") calls at once; $limit are allowed"

happens "its webhooks: acknowledged to the provider, in the record, delivered to the app"
webhooks_of() { sed -n "s/^$1 \(conv_[0-9a-z]*\).*/\1/p" "$folder/service/service.out" | sort "${2:--u}"; }
all_delivered() { [ -z "$(comm -23 <(webhooks_of acknowledged) <(webhooks_of delivered))" ]; }
within 60 all_delivered
webhooks_of acknowledged >"$folder/acknowledged"
acknowledged=$(wc -l <"$folder/acknowledged")
[ "$acknowledged" -eq "$placed" ] || fail "$placed calls ended, $acknowledged webhooks of them were acknowledged: $(cut -d' ' -f1 "$folder/service/service.out" | sort | uniq -c)"
(cd / && psql -q -A -t "$DATABASE_URL" -c "SELECT dedupe_key FROM ringfence.webhook_events WHERE outcome = 'applied'") |
    sed -n 's/.*\(conv_[0-9a-z]*\).*/\1/p' | sort -u >"$folder/stored"
lost=$(comm -23 "$folder/acknowledged" "$folder/stored" | wc -l)
twice=$(sed -n 's/^delivered //p' "$folder/service/service.out" | sort | uniq -d | wc -l)
printf '   %s acknowledged, %s of them not in the record, %s delivered twice; answered otherwise before: %s\n' \
    "$acknowledged" "$lost" "$twice" "$(grep -c '^answered-' "$folder/service/service.out" || true)"
[ "$lost" -eq 0 ] || fail "$lost acknowledged webhooks are not in the record"
[ "$twice" -eq 0 ] || fail "$twice webhooks were delivered twice"
operator 'ringfence calls list'
cause 'elevenlabs +0 of 10 in use' "each version goes on with the record of the other: $placed calls, each dialled once, at most $(jq .el_live_max <<<"$counts") at once; $acknowledged webhooks, each delivered once"
