#!/usr/bin/env bash
# Calls have ended, but no webhook came and the provider cannot be asked: their slots stay taken.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "stuck slots"

simulator --webhook-loss 1 --talk-ms 4000
config a <<<'[reconcile]
unreadable_alarm_secs = 2'
sidecar a
happens "three calls of acme are up; then the provider answers 500 to whoever asks about calls"
place acme 3
answered '3 × 200'
fault '{"provider":"elevenlabs","kind":"500","on":"get"}'
fault '{"provider":"elevenlabs","kind":"500","on":"list"}'
fault '{"provider":"twilio","kind":"500","on":"get"}'
fault '{"provider":"twilio","kind":"500","on":"list"}'
within 60 none_live
within 60 status_has '"sweepError":"'
happens "they have ended: the provider has $(calls_at_provider) live; acme may not call"
place acme 1
answered '1 × 503 BUSINESS_CONCURRENT_LIMIT_EXCEEDED'

operator 'ringfence calls list'
operator 'ringfence status'
cause 'account elevenlabs: cannot query its provider: .*500' "the provider cannot be asked, so nothing proves that the calls are over"

happens "the provider answers again"
heal
within 90 bash -c "! ringfence calls list | grep -q ^c_"
operator 'ringfence calls list --all'
cause '^c_.* (failed|completed|ended) .* - ' "the reconciler found their ends by itself; nothing was to be released by hand"
