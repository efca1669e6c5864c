#!/usr/bin/env bash
# The disk of the database is full.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "full disk"

mkdir "$folder/disk"
mount -t tmpfs -o size=3m tmpfs "$folder/disk" 2>/dev/null || skip "a small disk needs mount: run it as root, or as unshare -rm bash $0"
simulator --talk-ms 60000
config disk <<<'[inbox]
spool_max_mb = 1'
sidecar disk
place acme 1
happens "something else fills the disk"
dd if=/dev/zero of="$folder/disk/filler" bs=4k 2>/dev/null || true
place birch 2
grep -q '503 CALL_STORE_UNAVAILABLE' "$folder/answers" || fail "nothing was refused"

# SQLite finds room for a few small writes in what it has, so the store may have just recovered; the next call tells.
for _ in $(seq 20); do
    operator 'ringfence status'
    ! grep -q 'disk is full' "$seen" || break
    place birch 1
done
operator "df -h . | tail -n 1"
cause 'bad +store .*disk is full' "the disk of store.path is full; creates are refused before anything is sent"

happens "room is made"
rm "$folder/disk/filler"
within 30 curl -sf "http://$admin/ready"
place acme 1
answered '1 × 200'
operator 'ringfence health --ready'
cause '^ready$' "it goes on by itself"
cd "$folder"
