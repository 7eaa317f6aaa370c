#!/bin/sh
# Codex's `notify`: tell our hook of a turn that is complete, then whoever was to be notified before.
#
#     sh /absolute/tracebridge_notify.sh PYTHON HOOK AGENT HOME [THEIR COMMAND...] PAYLOAD

python=$1 hook=$2 agent=$3 home=$4
shift 4
for payload; do :; done
printf '%s' "$payload" | "$python" -I -S "$hook" "$agent" "$home" >/dev/null 2>&1
# With nothing before the payload there is nobody else.
[ $# -lt 2 ] || exec "$@"
