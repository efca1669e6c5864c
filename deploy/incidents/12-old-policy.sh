#!/usr/bin/env bash
# Two replicas share the database; the config of one was not rolled out.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "a replica on an old policy"

simulator --talk-ms 60000
postgres
more='[store]
url = { env = "DATABASE_URL" }
[gate]
backend = "database"
[plans]'
config a <<<"$more
PRO = { concurrent = 5 }"
config b <<<"$more
PRO = { concurrent = 2 }"
sidecar b
sidecar a
happens "a replica has PRO at 5, the other still has 2"
within 60 status_has '"policiesDiffer":true'
place acme 3
answered '2 × 200, 1 × 503 BUSINESS_CONCURRENT_LIMIT_EXCEEDED'

operator 'ringfence status'
cause 'replicas run different policies' "two policies are in force (one hash a replica); of plan.PRO the lower number holds on both"

happens "the other one is reloaded"
sed -i 's/PRO = { concurrent = 2 }/PRO = { concurrent = 5 }/' "$folder/b/ringfence.toml"
within 60 status_has '"policiesDiffer":false'
place acme 2
answered '2 × 200'
operator 'ringfence status'
cause 'Nothing needs attention' "one policy"
