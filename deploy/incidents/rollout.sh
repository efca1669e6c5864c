#!/usr/bin/env bash
# Two replicas over one Postgres are rolled back to the version before, one after the other, while an app places calls.
# `run.sh` leaves it out, since it needs that version's program:
#
#     RINGFENCE_OLD_BIN=/path/to/the/older/ringfence bash deploy/incidents/rollback.sh
#
# Every create has to be answered by one of the two, no call may be dialled twice or counted by nobody, and the limit has to hold throughout.
old=${RINGFENCE_OLD_BIN:-}
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "rollback"
[ -x "$old" ] || skip "RINGFENCE_OLD_BIN names no program of the version before"
limit=10

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

# replica FOLDER N [COMMAND…]: starts one and tells the app where it is.
replica() {
    local of=$1 n=$2
    shift 2
    sidecar "$of" "$@"
    printf %s "$api" >"$folder/api-$n"
}

# phase NAME: the app goes on for a while, and calls were placed in it.
phase() {
    echo "$1" >"$folder/phase"
    sleep 6
    grep -q "^$1 200" "$folder/load" || fail "no call was placed: $1"
}

# roll PID FOLDER N: as Kubernetes replaces a pod.
roll() {
    happens "replica $2 is stopped, and started again as $("$old" --version)"
    kill -TERM "$1"
    wait "$1" || fail "replica $2 did not drain"
    replica "$2" "$3" env PATH="$folder/old:$PATH"
}

# More than ringfence may place, so that the provider itself refuses nothing.
simulator --talk-ms 4000 --concurrent 30
postgres
mkdir "$folder/old"
ln -s "$old" "$folder/old/ringfence"
for one in a b; do
    config "$one" <<<'[store]
url = { env = "DATABASE_URL" }
[gate]
backend = "database"
[plans]
PRO = { concurrent = 8 }'
done
replica a 0
first=$sidecar_pid
replica b 1
second=$sidecar_pid
happens "the app places calls at both, as many as it can"
: >"$folder/load"
echo new >"$folder/phase"
apps=()
for from in 0 1000 2000 3000; do
    place_all "$from" &
    apps+=("$!")
done
started+=("${apps[@]}")
phase new
roll "$first" a 0
phase mixed
roll "$second" b 1
phase old
touch "$folder/enough"
wait "${apps[@]}"

happens "what the app was answered, by phase"
sort "$folder/load" | uniq -c
operator 'ringfence status'
counts=$(curl -s "$sim/_sim/state" | jq .counts)
placed=$(grep -c ' 200' "$folder/load")
if grep -Ev ' (200|503 (BUSINESS_CONCURRENT_LIMIT_EXCEEDED|GLOBAL_CAPACITY_EXCEEDED))' "$folder/load"; then fail "the app saw something else than a call or a full limit"; fi
[ "$(jq .creates_el <<<"$counts")" -eq "$placed" ] || fail "the app has $placed calls, the provider dialled $(jq .creates_el <<<"$counts")"
[ "$(jq .el_live_max <<<"$counts")" -le "$limit" ] || fail "the provider had $(jq .el_live_max <<<"$counts") calls at once; $limit are allowed"
within 60 bash -c "! ringfence calls list | grep -q ^c_"
operator 'ringfence calls list'
cause 'elevenlabs +0 of 10 in use' "the version before goes on with the record of this one: $placed calls, each dialled once, at most $(jq .el_live_max <<<"$counts") at once"
