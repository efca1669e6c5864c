#!/usr/bin/env bash
# Backs ringfence's database up while ringfence runs, and restores it while none runs. docs/backup.md explains.
#
#     bash deploy/backup.sh save    FILE.tar --sqlite /var/lib/ringfence/ringfence.db [--spool FOLDER]
#     bash deploy/backup.sh restore FILE.tar --sqlite /var/lib/ringfence/ringfence.db [--spool FOLDER]
#     bash deploy/backup.sh save    FILE.tar --postgres "$DATABASE_URL" [--spool FOLDER]
#     bash deploy/backup.sh restore FILE.tar --postgres "$DATABASE_URL" [--spool FOLDER]
#
# Needs sqlite3 (SQLite), or pg_dump, pg_restore and psql of the server's version or newer (Postgres).
set -euo pipefail

die() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}
usage() { die "usage: backup.sh save|restore FILE.tar --sqlite PATH | --postgres URL [--spool FOLDER]"; }

[ $# -ge 4 ] || usage
act=$1 file=$2
shift 2
sqlite='' postgres='' spool=''
while [ $# -ge 2 ]; do
    case $1 in
    --sqlite) sqlite=$2 ;;
    --postgres) postgres=$2 ;;
    --spool) spool=$2 ;;
    *) usage ;;
    esac
    shift 2
done
[ $# -eq 0 ] || usage
if { [ -z "$sqlite" ] && [ -z "$postgres" ]; } || { [ -n "$sqlite" ] && [ -n "$postgres" ]; }; then usage; fi

umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Of a folder that ringfence writes: a file may go while it is read.
copy_spool() {
    [ -n "$spool" ] && [ -d "$spool" ] || return 0
    mkdir -p "$work/spool"
    (cd "$spool" && find . -type f -print0) | while IFS= read -r -d '' one; do
        [ -e "$work/spool/$one" ] && continue
        mkdir -p "$work/spool/$(dirname "$one")"
        cp -p "$spool/$one" "$work/spool/$one" 2>/dev/null || rm -f "$work/spool/$one"
    done
}

save() {
    # Before and after: rows of the database that name a file have it, whether it came or went meanwhile.
    copy_spool
    if [ -n "$sqlite" ]; then
        [ -f "$sqlite" ] || die "there is no $sqlite"
        # SQLite's own online backup: it waits for writers, and what it copies is one moment's.
        sqlite3 "$sqlite" ".timeout 10000" ".backup '$work/ringfence.db'"
        [ "$(sqlite3 "$work/ringfence.db" 'PRAGMA integrity_check')" = ok ] || die "the copy of $sqlite is damaged"
    else
        pg_dump --dbname="$postgres" --schema=ringfence --format=custom --no-owner --no-privileges --file="$work/ringfence.dump"
    fi
    copy_spool
    tar -C "$work" -cf "$file.part" .
    mv "$file.part" "$file"
}

restore() {
    tar -C "$work" -xf "$file"
    if [ -n "$sqlite" ]; then
        [ -f "$work/ringfence.db" ] || die "$file has no SQLite database"
        mkdir -p "$(dirname "$sqlite")"
        # ringfence holds this lock for as long as it runs.
        exec 9>>"$sqlite.lock"
        flock --nonblock 9 || die "a ringfence has $sqlite: stop it first"
        cp "$work/ringfence.db" "$sqlite.part"
        rm -f "$sqlite-wal" "$sqlite-shm"
        mv "$sqlite.part" "$sqlite"
        if [ -e "$sqlite.lock" ]; then chown --reference="$(dirname "$sqlite")" "$sqlite" "$sqlite.lock"; fi
    else
        [ -f "$work/ringfence.dump" ] || die "$file has no dump of Postgres"
        [ "$(psql --no-psqlrc --tuples-only --no-align "$postgres" --command "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'ringfence'")" = 0 ] ||
            die "a ringfence is connected to this database: stop it first"
        # All or nothing.
        pg_restore --dbname="$postgres" --clean --if-exists --no-owner --no-privileges --single-transaction "$work/ringfence.dump"
    fi
    if [ -n "$spool" ] && [ -d "$work/spool" ]; then
        mkdir -p "$spool"
        cp -pR "$work/spool/." "$spool/"
    fi
}

case $act in
save) save ;;
restore) restore ;;
*) usage ;;
esac
