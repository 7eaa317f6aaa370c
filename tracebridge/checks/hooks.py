"""Whether an agent's hooks of ours are there, once, whole, and can run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tracebridge.checks import AgentLook, Finding, rule
from tracebridge.routing import Said, Source


@rule("hooks-missing", joint="hooks")
def missing(look: AgentLook) -> Iterator[Finding]:
    """No hook of ours is installed for this agent.

    Asked only where the agent is named. Without hooks its turns are seen when a gateway of ours
    sees their calls, and not at all otherwise.
    """
    if look.asked and not look.hooks and _plugin(look) is None:
        yield Finding(
            problem="no hook of ours is installed: its turns are not seen as they happen",
            at=tuple(Source(file) for file in list(look.setup.files.values())[:1]),
            remedy="install the hooks",
            command=f"tracebridge integrate {look.slug}",
        )


@rule("hooks-incomplete", joint="hooks")
def incomplete(look: AgentLook) -> Iterator[Finding]:
    """Some events have a hook of ours and others that need one have none.

    An older version installed them, or somebody took some out. What those events tell is missing
    until the transcript is read, and some of it for good.
    """
    there = {hook.event for hook in look.hooks}
    absent = [event for event in look.module.expected_events() if event not in there]
    if there and absent:
        yield Finding(
            problem=f"no hook of ours for {', '.join(absent)}",
            at=(Source(look.hooks[0].file, ("hooks",)),),
            remedy="install them again",
            command=f"tracebridge integrate {look.slug}",
        )


@rule("hook-stale-path", joint="hooks")
def stale_path(look: AgentLook) -> Iterator[Finding]:
    """An installed hook runs an interpreter or a script that is not there any more.

    It happens when a virtual environment is made anew or Python is updated. The agent says nothing,
    or complains at each event.
    """
    gone: dict[str, Source] = {}
    for hook in look.hooks:
        for word in (hook.words[0] if hook.words else "", hook.script):
            if word.startswith("/") and not Path(word).exists():
                gone.setdefault(word, hook.source)
    for word, source in gone.items():
        yield Finding(
            problem=f"the hook runs {word}, which does not exist",
            at=(source,),
            remedy="install the hooks again",
            command=f"tracebridge integrate {look.slug}",
        )


@rule("hook-shim", joint="hooks")
def shim(look: AgentLook) -> Iterator[Finding]:
    """An installed hook runs through a version manager's shim, or by a bare name.

    A shim of pyenv or asdf costs ten times the hook and, like a bare name, may be another Python
    tomorrow.
    """
    for hook in look.hooks:
        interpreter = hook.words[0] if hook.words else ""
        if "/shims/" in interpreter or not interpreter.startswith("/"):
            yield Finding(
                problem=f"the hook runs {interpreter or 'nothing'}, not an interpreter by its path",
                at=(hook.source,),
                remedy="install the hooks again",
                command=f"tracebridge integrate {look.slug}",
            )
            return


@rule("hook-twice", joint="hooks")
def twice(look: AgentLook) -> Iterator[Finding]:
    """A hook of ours is registered more than once for the same event.

    Hooks of all scopes, and of plugins, add up: each event is told that often. Turns still come out
    once, but the agent waits for every hook.
    """
    plugin = _plugin(look)
    times = Counter(hook.event for hook in look.hooks)
    files = {hook.file.path: hook for hook in look.hooks}
    if plugin is not None and look.hooks:
        yield Finding(
            problem="our plugin is on and our hooks stand in the settings, too",
            at=(plugin.source, look.hooks[0].source),
            remedy="keep the plugin and take the hooks out of the settings",
            command=f"tracebridge integrate {look.slug} --remove",
        )
    elif any(count > 1 for count in times.values()):
        local = any(path.is_relative_to(look.place.project) for path in files)
        several = local and len(files) > 1
        yield Finding(
            problem=f"{max(times.values())} hooks of ours for one event",
            at=tuple(hook.source for hook in files.values()),
            remedy="take out those of the project" if several else "install them anew",
            command=f"tracebridge integrate {look.slug}" + (" --local --remove" if several else ""),
        )


@rule("hook-other-home", joint="watcher")
def other_home(look: AgentLook) -> Iterator[Finding]:
    """An installed hook writes to another home than the one in use here.

    Its events go to a spool that `tail` and `status` here do not look into.
    """
    home = str(look.machine.settings.home)
    other = [hook for hook in look.hooks if hook.words and hook.words[-1] != home]
    if other:
        yield Finding(
            problem=f"the hook writes to {other[0].words[-1]}, and {home} is in use here",
            at=(other[0].source,),
            remedy="install the hooks again, from where TRACEBRIDGE_HOME is as it should be",
            command=f"tracebridge integrate {look.slug}",
        )


@rule("hook-async", joint="hooks")
def in_background(look: AgentLook) -> Iterator[Finding]:
    """An installed hook is set to run in the background.

    An agent that ends kills such hooks, and the end of the turn is what they would have told. Ours
    take a few milliseconds; there is nothing to win.
    """
    for hook in look.hooks:
        if hook.entry.get("async") is True:
            yield Finding(
                problem=f"the hook for {hook.event} has async: true",
                at=(hook.source,),
                remedy="install the hooks again",
                command=f"tracebridge integrate {look.slug}",
            )


@rule("respan-hook-too", joint="sink")
def respan_hook(look: AgentLook) -> Iterator[Finding]:
    """A hook of the Respan CLI is installed beside ours.

    Each turn then goes to the backend twice, once from each, and its tokens are counted twice.
    """
    for file in look.setup.files.values():
        if "/.respan/hooks/" in file.text and look.hooks:
            yield Finding(
                problem="a hook of the Respan CLI is installed beside ours",
                at=(Source(file),),
                remedy="keep one of the two",
                command=f"respan integrate {look.slug} --disable",
            )


def _plugin(look: AgentLook) -> Said | None:
    """Return what turns on a plugin of ours, where an agent has such."""
    plugin = getattr(look.module, "plugin", None)
    return None if plugin is None else plugin(look.setup)
