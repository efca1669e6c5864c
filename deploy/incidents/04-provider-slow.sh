#!/usr/bin/env bash
# A provider answers creates after the app has given up: calls may exist that nobody knows.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "provider slow"

simulator --talk-ms 20000
config a <<<'[timeouts]
create_secs = 2'
sidecar a
happens "ElevenLabs takes 6 s to answer a create"
fault '{"provider":"elevenlabs","kind":"slow","ms":6000,"on":"create"}'
place acme 2
answered '2 × 424 CALL_OUTCOME_UNKNOWN'

operator 'ringfence status'
operator 'ringfence calls list'
cause '^c_.* unknown ' "ElevenLabs answers later than timeouts.create_secs; each create holds its slot, since its call may be up"

happens "the late answers come"
sleep 6
heal
operator 'ringfence calls list --wide'
cause '^c_.* live .* CA[0-9a-f]{32} conv_' "the late answers named the calls: they are counted, and the app's repetition would get them, not a second call"
