#!/usr/bin/env bash
# Redis goes away, and comes back empty.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "Redis gone"

simulator --talk-ms 60000
postgres
redis
config a <<<'[store]
url = { env = "DATABASE_URL" }
[gate]
backend         = "redis"
redis_url       = { env = "REDIS_URL" }
return_after_ms = 3000'
sidecar a
place acme 1
happens "Redis is killed"
crash "$redis_pid"
place birch 1
answered '1 × 503 GATE_REBUILDING'
within 60 status_has '"mode":"database"'
place birch 1
answered '1 × 200'

operator 'ringfence status'
operator 'ringfence refusals list'
cause 'limiter: database active instead of redis: .*refused' "Redis does not answer; the database decides. Limits hold. Creates were refused for about 2 s (GATE_REBUILDING)"

happens "Redis is started again, empty"
start "$folder/redis" redis redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --maxmemory-policy noeviction --dir "$folder/redis"
within 60 status_has '"mode":"redis"'
operator 'ringfence status'
cause 'gate +redis, ok, .* [23] slots held' "Redis decides again; it was filled from the database first, so no open call is forgotten"
