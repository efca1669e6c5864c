#!/usr/bin/env bash
# The secret was changed at ElevenLabs, and not here.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "wrong webhook secret"

simulator --talk-ms 1000
config a <<<'[records]
wait_secs = 2'
export ELEVENLABS_WEBHOOK_SECRET=wsec_of_last_year
sidecar a
settings "{\"el_events_url\":\"http://127.0.0.1:$webhooks/webhooks/elevenlabs\"}"
happens "ElevenLabs signs with another secret than the config has"
place acme 2
within 60 grep -q 'webhook signature invalid' serve.log

operator 'journalctl --unit ringfence | grep "webhook signature invalid" | tail -n 1'
cause 'webhook signature invalid .* error=no configured secret gives this signature' "webhooks come, and their signature does not hold for webhook_secrets"

happens "the right one is put first, beside the old one; the file of variables is read at the start, so ringfence is restarted"
kill "$sidecar_pid"
wait "$sidecar_pid" || true
export ELEVENLABS_WEBHOOK_SECRET=wsec_simulated
sidecar a
place acme 1
within 30 bash -c 'ringfence events list | grep -q applied'
operator 'ringfence events list'
cause '^ev_.* post_call_transcription +applied +c_' "webhooks hold again; ends that were missed meanwhile were found by asking"
