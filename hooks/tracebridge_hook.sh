#!/bin/sh
# The twin of tracebridge_hook.py for events that come often: a third of its time, for what it
# leaves out. It starts no watcher, cuts no large payload and waits for the end of stdin, so it is
# only for events whose stdin the agent closes.
#
#     sh /absolute/tracebridge_hook.sh AGENT [HOME]
#
# Prints nothing and exits 0, whatever happens. The format is told in tracebridge/spool.py.

trap 'exit 0' 0
exec >/dev/null 2>&1
umask 077
# Create files, never write into one that is there, not through a link either.
set -C
# Loading a locale would be a tenth of what `cat` and `mv` take.
export LC_ALL=C

write_head() {
    printf 'format=1\000kind=hook\000agent=%s\000pid=%s\000' "$1" "$$" || return
    [ -z "$time_ns" ] || printf 'time_ns=%s\000' "$time_ns" || return
    # And nothing else: the environment of a hook holds API keys.
    for variable in AI_AGENT CLAUDE_CODE_ENTRYPOINT CLAUDE_PID CLAUDE_PROJECT_DIR \
        RESPAN_CUSTOMER_ID RESPAN_METADATA RESPAN_PROJECT_ID RESPAN_SPAN_NAME \
        RESPAN_WORKFLOW_NAME TRACEBRIDGE_AGENT_PID TRACEPARENT; do
        eval "value=\${$variable-}"
        [ -z "$value" ] || printf 'env.%s=%.65536s\000' "$variable" "$value" || return
    done
    printf '\000'
}

# A name must stay unique while process ids come round again. Only bash knows the time; to ask `date`
# costs a third of what the rest takes, so the time is that of the file, exact to a tick of the kernel.
time_ns=
if [ -n "$BASH_VERSION" ] && [ -n "$EPOCHREALTIME" ]; then
    time_ns=${EPOCHREALTIME%[.,]*}${EPOCHREALTIME#*[.,]}000
elif read -r name </proc/sys/kernel/random/uuid; then
    name=mtime-$name.event
else
    time_ns=$(date +%s%N)
    # Some know no nanoseconds and print the letter.
    case $time_ns in *[!0-9]*) time_ns=${time_ns%%[!0-9]*}000000000 ;; esac
fi
[ -z "$time_ns" ] || name=0$time_ns-$$-0.event

# As platformdirs has it, see tracebridge_hook_main.py.
home=${TRACEBRIDGE_HOME:-$2}
if [ -z "$home" ]; then
    below=.local/state
    [ "$(uname)" != Darwin ] || below='Library/Application Support'
    case $XDG_STATE_HOME in
    /*) home=$XDG_STATE_HOME/tracebridge ;;
    *) home=$HOME/$below/tracebridge ;;
    esac
fi
spool=$home/spool

# The home may be a link, what is in it may not, and it must be ours unless we are root: see
# tracebridge_hook_main.py.
[ -L "$spool" ] || { [ -d "$spool/tmp" ] && [ -d "$spool/new" ]; } ||
    mkdir -p "$spool/tmp" "$spool/new"
if [ -L "$spool" ] || [ -L "$spool/tmp" ] || [ -L "$spool/new" ] ||
    { [ ! -O "$spool" ] && [ ! -w /etc/passwd ]; }; then
    cat
elif { write_head "$1" && cat; } >"$spool/tmp/$name"; then
    mv "$spool/tmp/$name" "$spool/new/$name" || rm -f "$spool/tmp/$name"
else
    rm -f "$spool/tmp/$name"
    # The agent is still writing and must not find a broken pipe.
    cat
fi
