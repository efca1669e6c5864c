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
sleep 6

operator "curl -s http://$admin/ready"
operator "curl -s --unix-socket \$SOCKET http://localhost/status | jq -c .store"
cause '"ok":false.*"error":"' "the database does not answer; creates are refused before anything is sent, webhooks wait in the journal"

happens "Postgres is started again"
postgres_up
within 60 curl -sf "http://$admin/ready"
within 60 bash -c "curl -s --unix-socket $SOCKET http://localhost/status | grep -q '\"journaled\":0'"
operator "curl -s --unix-socket \$SOCKET http://localhost/status | jq -c .store"
place acme 1
cause '"ok":true.*"journaled":0' "it goes on by itself; what waited was applied"
