#!/usr/bin/env bash
# One business takes all that it may, and asks for more; the others go on.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "one business floods"

simulator --talk-ms 60000
config a <<<''
sidecar a
place birch 1
happens "acme asks for 60 calls"
place acme 60
place birch 1

operator 'ringfence calls list'
operator "curl -s http://$admin/api/refusals?limit=100 | jq -r '.refusals[] | [.business, .code, .limit_name] | @tsv' | sort | uniq -c | sort -rn"
cause '[0-9]+ acme.*BUSINESS_CONCURRENT_LIMIT_EXCEEDED.*plan.PRO' "acme meets its own limit; nobody else is refused"
