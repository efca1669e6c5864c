#!/usr/bin/env bash
# The same with Postgres, while Redis, which decides, is ahead of what is restored.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "restore, Postgres and Redis"

simulator --talk-ms 60000
postgres
redis
config a <<<'[store]
url = { env = "DATABASE_URL" }
[gate]
backend   = "redis"
redis_url = { env = "REDIS_URL" }'
sidecar a
happens "two calls of acme are up; a backup is taken; then one of birch is placed, which the backup does not have"
place acme 2
operator "bash $root/deploy/backup.sh save ../backup.tar --postgres \$DATABASE_URL --spool ringfence-spool"
operator "bash $root/deploy/backup.sh restore ../backup.tar --postgres \$DATABASE_URL"
cause 'stop it first' "a backup is not restored below a running process"
place birch 1

happens "every process is stopped, the database is lost"
kill "$sidecar_pid"
wait "$sidecar_pid" || true
psql -q "$DATABASE_URL" -c 'DROP SCHEMA ringfence CASCADE' 2>/dev/null
redis-cli -u "$REDIS_URL" --scan --pattern 'ringfence:*' | xargs --no-run-if-empty redis-cli -u "$REDIS_URL" unlink >/dev/null
operator "bash $root/deploy/backup.sh restore ../backup.tar --postgres \$DATABASE_URL --spool ringfence-spool"
sidecar a
operator 'ringfence calls list'
cause 'elevenlabs +3 of 10 in use: 2 ours, 1 foreign' "the calls of the backup are known by business; what was placed since is counted as the provider shows it"
place acme 3
answered '1 × 200, 2 × 503 BUSINESS_CONCURRENT_LIMIT_EXCEEDED'
operator 'ringfence status'
cause 'redis, ok, .* 4 slots held' "Redis was filled from the database: three calls, and the one of acme that still fitted"
