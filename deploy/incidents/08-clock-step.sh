#!/usr/bin/env bash
# This machine's clock jumps two hours ahead while calls are up.
# shellcheck source=deploy/incidents/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
title "clock step"

preload=$(compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' | head -n 1) || true
[ -n "$preload" ] || skip "a clock that steps needs libfaketime (Debian: faketime)"
simulator --talk-ms 8000
config a <<<''
echo +0 >"$folder/clock"
sidecar a env LD_PRELOAD="$preload" FAKETIME_TIMESTAMP_FILE="$folder/clock" FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1
settings "{\"el_events_url\":\"http://127.0.0.1:$webhooks/webhooks/elevenlabs\"}"
place acme 2
sleep 1
happens "the clock steps"
echo +2h >"$folder/clock.new"
mv "$folder/clock.new" "$folder/clock"
within 60 bash -c "ringfence calls list | grep -q ' live  *2h00m .*s poll'"
operator 'ringfence calls list'
cause '^c_.* acme .* live +2h' "no call is given up for its age: what is past its deadline is looked up first"

within 60 grep -q 'webhook signature invalid' serve.log
operator 'journalctl --unit ringfence | grep "webhook signature invalid" | tail -n 1'
cause "the signature is 72[0-9]{2} s old; .*check this machine's clock" "webhooks are refused as too old"
# What an operator types has the machine's clock.
LD_PRELOAD=$preload FAKETIME_TIMESTAMP_FILE=$folder/clock FAKETIME_DONT_FAKE_MONOTONIC=1 operator 'ringfence doctor | grep clock'
cause 'clock of this machine is 7[12][0-9]{2} s ahead .*W031' "this machine's clock differs from the provider's"
