#!/usr/bin/env bash
# A backup is taken under running calls; then the disk is lost, and the record comes back from it.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "restore, SQLite"
command -v sqlite3 >/dev/null || skip "there is no sqlite3 here"

simulator --talk-ms 60000
app_port=$(spare_port)
config a <<<"[app]
forward_url = \"http://127.0.0.1:$app_port\""
sidecar a
happens "the app is down; a webhook of 2 MiB waits for it in the spool"
[ "$(webhook 2097152)" = 200 ] || fail "it was not taken"
happens "two calls of acme are up; a backup is taken; then one of birch is placed, which the backup does not have"
place acme 2
operator "bash $root/deploy/backup.sh save ../backup.tar --sqlite ringfence.db --spool ringfence.db-spool"
operator "bash $root/deploy/backup.sh restore ../backup.tar --sqlite ringfence.db"
cause 'stop it first' "a backup is not restored below a running process"
place birch 1

happens "the machine dies, and its disk with it"
crash "$sidecar_pid"
rm -rf ringfence.db*
operator "bash $root/deploy/backup.sh restore ../backup.tar --sqlite ringfence.db --spool ringfence.db-spool"
sidecar a
operator 'ringfence calls list'
cause 'elevenlabs +3 of 10 in use: 2 ours, 1 foreign' "the calls of the backup are known by business; what was placed since is counted as the provider shows it"
place acme 3
answered '1 × 200, 2 × 503 BUSINESS_CONCURRENT_LIMIT_EXCEEDED'
happens "the app is back"
app "$app_port"
within 60 grep -Eq '^2097[0-9]{3}$' "$folder/app/app.out"
happens "it has the webhook that waited when the backup was taken"
