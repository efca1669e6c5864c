#!/usr/bin/env bash
# Breaks ringfence in twelve ways and shows what an operator sees (docs/runbook.md); restores it from a backup (docs/backup.md).
#
#     bash deploy/incidents/run.sh                   # all
#     bash deploy/incidents/run.sh redis postgres    # those whose name has one of these words
#
# Needs curl, jq and python3; some need redis-server, Postgres, faketime, or root. What is missing is skipped and said.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
passed=0 failed=0 skipped=0
for script in "$here"/[01][0-9]-*.sh "$here"/restore-*.sh; do
    wanted=$([ $# -gt 0 ] || echo all)
    for word in "$@"; do case $(basename "$script") in *"$word"*) wanted=yes ;; esac; done
    [ -n "$wanted" ] || continue
    begun=$SECONDS
    bash "$script"
    code=$?
    case $code in
    0) passed=$((passed + 1)) what=passed ;;
    77) skipped=$((skipped + 1)) what=skipped ;;
    *) failed=$((failed + 1)) what=FAILED ;;
    esac
    printf '<== %s %s in %s s\n' "$(basename "$script")" "$what" "$((SECONDS - begun))"
done
printf '%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ]
