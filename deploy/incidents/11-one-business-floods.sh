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
answered '3 × 200, 57 × 503 BUSINESS_CONCURRENT_LIMIT_EXCEEDED'
place birch 1
answered '1 × 200'

operator 'ringfence status'
operator 'ringfence refusals list --since 5m --limit 3'
operator 'ringfence explain --business acme --account elevenlabs'
cause 'refused 57 .*plan.PRO 57' "acme meets its own limit; nobody else is refused"
