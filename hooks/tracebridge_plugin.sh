#!/bin/sh
# Claude Code's plugin: run our hook by the interpreter of the command `tracebridge`, which then can
# start a watcher. Without that command events wait in the spool until it is there.
#
# Prints nothing and exits 0, whatever happens.

exec >/dev/null 2>&1
tracebridge=$(command -v tracebridge) && IFS= read -r line <"$tracebridge" && python=${line#??}
# A line such as "#!/usr/bin/env bash" names no interpreter that can be run as it stands.
[ -x "$python" ] || python=$(command -v python3)
[ -z "$python" ] || "$python" -I -S "${0%/*}/tracebridge_hook.py" claude-code
exit 0
