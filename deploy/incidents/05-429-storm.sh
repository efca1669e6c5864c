#!/usr/bin/env bash
# Somebody else uses the account: the provider is full although ringfence is not.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "429 storm"

simulator --talk-ms 60000 --concurrent 3
config a <<<''
sidecar a
happens "of 3 calls that the account allows, 2 are placed outside ringfence; the config says 10"
for n in 1 2; do
    curl -s -o "$folder/direct" -H 'xi-api-key: sk_simulated' -H 'Content-Type: application/json' "$sim/v1/convai/twilio/outbound-call" \
        -d "{\"agent_id\":\"agent_1\",\"agent_phone_number_id\":\"phnum_1\",\"to_number\":\"+155500019$n\"}"
done
place acme 3
place birch 3
answered '3 × 503 ELEVENLABS_429_RATE_LIMIT'
within 60 bash -c 'ringfence calls list | grep -q ", 2 foreign .*provider says 3"'

operator 'ringfence refusals list'
operator 'ringfence calls list'
cause 'elevenlabs .* [1-9][0-9]* foreign .*provider says' "calls outside ringfence use the account up (foreign), and accounts.elevenlabs.concurrent is above what was bought"
