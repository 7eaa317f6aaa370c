"""Whether what is ours works: settings, spool, watcher, store, sinks."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator

from tracebridge.agents import agents
from tracebridge.checks import Finding, Fix, Machine, machine_rule
from tracebridge.config_files import read_toml
from tracebridge.destinations import ignored
from tracebridge.routing import Source, is_loopback, routing_module
from tracebridge.settings import CONFIG
from tracebridge.sinks import SinkSettingsError, configured_sinks
from tracebridge.spans import Content
from tracebridge.spool import Spool
from tracebridge.tags import parse_tags
from tracebridge.watch_lock import is_watched

# A watcher takes in what is new within milliseconds; what is older than this waits for nobody.
PATIENCE_S = 30.0


@machine_rule("settings-unusable", joint="watcher")
def settings_unusable(machine: Machine) -> Iterator[Finding]:
    """A setting of ours cannot be used.

    Neither the watcher nor most commands start until it is corrected; hooks go on, and nothing that
    they tell is lost.
    """
    if machine.settings_problem is not None:
        yield Finding(
            problem=machine.settings_problem,
            at=(machine.settings.home / CONFIG,),
            remedy="correct it",
        )


@machine_rule("store-unusable", joint="watcher")
def store_unusable(machine: Machine) -> Iterator[Finding]:
    """The store cannot be opened or read.

    Turns are not put together meanwhile; what hooks and gateway tell waits in the spool.
    """
    if machine.store_problem is not None:
        yield Finding(
            problem=machine.store_problem,
            at=(machine.settings.home,),
            remedy="see above; then let a watcher take in what waits",
            command="tracebridge watch --once",
        )


@machine_rule("watcher-dead", joint="watcher")
def watcher_dead(machine: Machine) -> Iterator[Finding]:
    """Something waits, and no watcher lives to take it in or send it.

    The hooks start one by themselves unless TRACEBRIDGE_NO_WATCH is set or it dies at once; then
    `watch.log` says why.
    """
    if is_watched(machine.settings.home):
        return
    waits = []
    if _oldest_s(machine) > PATIENCE_S:
        waits.append(f"{Spool(machine.settings.home).depth()} events")
    if machine.store is not None and _sinks(machine) and (spans := machine.store.waiting()):
        waits.append(f"{spans} finished spans")
    if waits:
        yield Finding(
            problem=f"{' and '.join(waits)} wait, and no watcher is running",
            at=(machine.settings.home / "watch.log",),
            remedy="take in and send what waits",
            command="tracebridge watch --once",
        )


@machine_rule("watcher-stuck", joint="watcher")
def watcher_stuck(machine: Machine) -> Iterator[Finding]:
    """A watcher is running, and the spool grows all the same.

    It cannot write its store (a full disk, perhaps), or it hangs.
    """
    if is_watched(machine.settings.home) and _oldest_s(machine) > PATIENCE_S:
        yield Finding(
            problem=f"{Spool(machine.settings.home).depth()} events wait, the oldest for"
            f" {_oldest_s(machine):.0f} s, though a watcher is running",
            at=(machine.settings.home / "watch.log",),
            remedy="see what its log says, end it, and take in what waits",
            command="tracebridge watch --once",
        )


@machine_rule("spool-damaged", joint="watcher")
def spool_damaged(machine: Machine) -> Iterator[Finding]:
    """Files were put aside because nobody could understand them.

    A disk that was full, or a hook of another version. They are kept for whoever wants to look.
    """
    folder = machine.settings.home / "spool" / "bad"
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    if names:
        yield Finding(
            problem=f"{len(names)} files of the spool could not be understood",
            at=(folder,),
            remedy="look at them, and delete them",
            command=f"rm -r {shlex.quote(str(folder))}",
            note=True,
        )


@machine_rule("home-open-to-others", joint="safety")
def home_open(machine: Machine) -> Iterator[Finding]:
    """Other users of this machine can look into our folder.

    Prompts, answers and file contents lie there.
    """
    home = machine.settings.home
    if home.is_dir() and home.stat().st_mode & 0o077:
        yield Finding(
            problem=f"its mode is {home.stat().st_mode & 0o777:o}",
            at=(home,),
            remedy="close it to others",
            fix=Fix(run=lambda: home.chmod(0o700)),
        )


@machine_rule("sink-settings", joint="sink")
def sink_settings(machine: Machine) -> Iterator[Finding]:
    """The sinks that the settings ask for cannot be used.

    Turns are kept here; nothing is sent until it is corrected.
    """
    try:
        configured_sinks(machine.settings.env)
    except SinkSettingsError as error:
        yield Finding(
            problem=str(error),
            at=(machine.settings.home / CONFIG,),
            remedy="correct it here or in the environment; `tracebridge status` says what is set",
        )


@machine_rule("sink-of-the-shell", joint="sink")
def sink_of_the_shell(machine: Machine) -> Iterator[Finding]:
    """The shell says where spans go, and a watcher that a hook starts does not obey it.

    A hook's environment is its agent's, and may come from a project; some agents also strip it.
    What `config.toml` says counts for every watcher; without it, turns are kept here and not sent.
    """
    if machine.settings_problem is not None:
        return
    names = ignored(machine.settings)
    if names:
        yield Finding(
            problem=f"{', '.join(names)} of the shell count for no watcher that a hook starts",
            at=tuple(Source(variable=name) for name in names),
            remedy=f"write them into {machine.place.shown(machine.settings.home / CONFIG)}",
            command="tracebridge sink --keep",
            # Without hooks nothing but commands of the shell sends.
            note=not _has_hooks(machine),
        )


@machine_rule("sink-failing", joint="sink")
def sink_failing(machine: Machine) -> Iterator[Finding]:
    """A sink did not take the last spans, or refused some for good.

    What it does not take is sent again and again and is not lost; what it refuses stays here.
    """
    rows = machine.store.sinks() if machine.store is not None else []
    for row in rows:
        if row.name not in _sinks(machine):
            continue
        failed = (row.last_error_ns or 0) > (row.last_success_ns or 0)
        if row.waiting and failed:
            yield Finding(
                problem=f"{row.name}: {row.last_error}; {row.waiting} spans wait",
                at=(row.name,),
                remedy="mend what it says and send them again",
                command="tracebridge watch --once",
            )
        elif row.refused:
            yield Finding(
                problem=f"{row.name} refused {row.refused} spans for good: {row.last_error}",
                at=(row.name,),
                remedy="mend what it says; `tracebridge export` has the turns",
                note=True,
            )


@machine_rule("content-full-leaves", joint="safety")
def content_full(machine: Machine) -> Iterator[Finding]:
    """The content level is `full`, and spans leave this machine.

    Prompts, answers, commands and file contents are sent as they are, known secrets excepted.
    """
    if machine.settings_problem is not None or machine.settings.content is not Content.FULL:
        return
    away = {name: to for name, to in _sinks(machine).items() if not is_loopback(to) and "://" in to}
    if away:
        origin = machine.settings.values["content"].origin
        yield Finding(
            problem=f"content = full, sent to {', '.join(away.values())}",
            at=(_origin(machine, origin),),
            remedy='set content = "redacted" there, unless it is meant so',
            command=f"unset {origin}" if origin.isidentifier() else None,
            note=True,
        )


@machine_rule("tags-not-json", joint="link")
def tags_not_json(machine: Machine) -> Iterator[Finding]:
    """RESPAN_METADATA or TRACEBRIDGE_METADATA is no JSON object.

    The turns then carry no metadata, and nothing else says so.
    """
    _, problem = parse_tags(machine.place.env)
    if problem is not None:
        name = problem.partition(" ")[0]
        yield Finding(
            problem=problem,
            at=(Source(variable=name),),
            remedy="write it as JSON",
            command=f"""export {name}='{{"team": "blue"}}'""",
        )


def _has_hooks(machine: Machine) -> bool:
    modules = map(routing_module, agents().values())
    return any(module.hooks(module.read_setup(machine.place)) for module in modules)


def _sinks(machine: Machine) -> dict[str, str]:
    try:
        return {sink.name: sink.target for sink in configured_sinks(machine.settings.env)}
    except SinkSettingsError:
        return {}


def _oldest_s(machine: Machine) -> float:
    """Return for how long the oldest event has been waiting."""
    oldest = next(Spool(machine.settings.home).waiting(), None)
    try:
        return time.time() - oldest.stat().st_mtime if oldest else 0.0
    except OSError:
        # A watcher was faster.
        return 0.0


def _origin(machine: Machine, origin: str) -> Source:
    file = machine.settings.home / CONFIG
    if origin == str(file):
        return Source(read_toml(file), ("content",))
    return Source(variable=origin)
