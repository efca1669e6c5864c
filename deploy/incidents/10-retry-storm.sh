#!/usr/bin/env bash
# Answers are lost on the way, and an app repeats its orders without a pause.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "retry storm"

simulator --talk-ms 60000
config a <<<''
sidecar a
happens "the provider's answer is lost; the app asks for the same call 20 times, with an Idempotency-Key"
fault '{"provider":"elevenlabs","kind":"accept_then_drop","n":1}'
printf '   acme asks for one call, 20 times: '
for _ in $(seq 20); do order acme +15550009999 "Idempotency-Key: order-1"; done | sort | uniq -c | sed 's/^ *//; s/ / × /; s/ $//' | paste -sd ,
happens "another app ignores Retry-After: 40 orders where 3 fit"
place birch 40
answered '3 × 200, 37 × 503 BUSINESS_CONCURRENT_LIMIT_EXCEEDED'

operator 'journalctl --unit ringfence | grep -c "duplicate request"'
operator 'ringfence status'
operator 'ringfence refusals list --limit 5'
cause '^19$' "19 repetitions of one order, none of them dialled; and birch, whose app does not wait for Retry-After"
[ "$(calls_at_provider)" -le 4 ] || fail "the provider dialled more than 4"
