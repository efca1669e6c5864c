#!/usr/bin/env bash
# A key is misspelt in a config that is reloaded.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "policy typo"

simulator --talk-ms 60000
config a <<<'[plans]
PRO = { concurrent = 2 }'
sidecar a
happens "PRO is to have 5: somebody writes concurent"
sed -i 's/PRO = { concurrent = 2 }/PRO = { concurent = 5 }/' ringfence.toml
within 60 status_has E014
place acme 3
answered '2 × 200, 1 × 503 BUSINESS_CONCURRENT_LIMIT_EXCEEDED'

operator 'ringfence status'
operator 'ringfence check'
cause 'error.E014.: unknown key .concurent. in .plans.PRO.' "the file has an unknown key; the limits of before are in force"

happens "the typo is mended"
sed -i 's/concurent/concurrent/' ringfence.toml
operator 'ringfence reload'
place acme 3
answered '3 × 200'
operator 'ringfence calls list'
cause 'limit +plan.PRO .*5 calls at once' "the new limit is in force"
