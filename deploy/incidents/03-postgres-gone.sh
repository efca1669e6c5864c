#!/usr/bin/env bash
# Postgres goes away: nothing is dialled that is not on record.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "Postgres gone"

simulator --talk-ms 5000
postgres
config a <<<'[store]
url = { env = "DATABASE_URL" }'
sidecar a
settings "{\"el_events_url\":\"http://127.0.0.1:$webhooks/webhooks/elevenlabs\"}"
place acme 1
happens "Postgres is stopped as by a crash"
postgres_down
place acme 1
answered '1 × 503 CALL_STORE_UNAVAILABLE'
within 60 status_has '"journaled":1'

operator 'ringfence health --ready'
operator 'ringfence status'
cause 'bad +store .*no connection' "the database does not answer; creates are refused before anything is sent, webhooks wait in the journal"

happens "Postgres is started again"
postgres_up
within 60 curl -sf "http://$admin/ready"
within 60 status_has '"journaled":0'
operator 'ringfence status'
place acme 1
answered '1 × 200'
cause 'store +postgres .* ok' "it goes on by itself; what waited was applied"
