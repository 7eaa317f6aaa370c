"""What is on, what waits and what went wrong, for people and for programs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tracebridge.destinations import ignored
from tracebridge.model import Evidence
from tracebridge.settings import Settings
from tracebridge.sinks import ReadySink, SinkSettingsError, configured_sinks
from tracebridge.spool import Spool
from tracebridge.store import Store
from tracebridge.watch_lock import is_watched


def status(settings: Settings) -> dict[str, Any]:
    """Return the state of everything below the home. The shape is a contract for scripts."""
    ready: list[ReadySink] = []
    problem = None
    try:
        ready = configured_sinks(settings.env)
    except SinkSettingsError as error:
        problem = str(error)
    with Store(settings.home) as store:
        by_gateway = store.link_counts_by_gateway()
        linked = sum(by_gateway.values(), Counter[str]())
        exact = {e: linked.get(e, 0) for e in Evidence if e.confidence == "exact"}
        turns = store.turn_counts()
        known = {row.name: row for row in store.sinks()}
        names = dict.fromkeys([*(sink.name for sink in ready), *known])
        targets = {sink.name: sink.target for sink in ready}
        return {
            "home": str(settings.home),
            "watcher": is_watched(settings.home),
            "links": {
                "exact": sum(exact.values()),
                "inferred": linked.get(Evidence.SESSION_WINDOW, 0),
                "orphans": linked.get("orphan", 0),
                "side_calls": linked.get("side", 0),
                "scripts": linked.get("script", 0),
                "waiting": linked.get("waiting", 0),
                "by_evidence": {e.value: linked.get(e, 0) for e in Evidence},
                "by_gateway": {name: dict(counts) for name, counts in by_gateway.items()},
                "orphan_reasons": store.orphan_reasons(),
            },
            "spool": Spool(settings.home).depth(),
            "outbox": store.waiting(),
            "sinks": [
                {
                    "name": name,
                    "target": targets.get(name),
                    "configured": name in targets,
                    "waiting": known[name].waiting if name in known else 0,
                    "refused": known[name].refused if name in known else 0,
                    "sent": known[name].sent if name in known else 0,
                    "last_success_ns": known[name].last_success_ns if name in known else None,
                    "last_error_ns": known[name].last_error_ns if name in known else None,
                    "last_error": known[name].last_error if name in known else None,
                }
                for name in names
            ],
            "sink_problem": problem,
            # Variables that say where spans go, to this shell and to no watcher of a hook.
            "ignored_by_hooks": ignored(settings),
            "turns": {
                "open": turns.get("open", 0),
                "finished": turns.get("finished", 0),
                "abandoned": turns.get("abandoned", 0),
            },
            "notes": store.notes(),
            "settings": {
                name: {"value": origin.value, "origin": origin.origin}
                for name, origin in settings.values.items()
            },
        }


def status_text(state: dict[str, Any]) -> str:
    """Return the state as lines for people."""
    links, turns = state["links"], state["turns"]
    by_evidence = ", ".join(f"{n} by {name}" for name, n in links["by_evidence"].items() if n)
    lines = [
        f"home      {state['home']}",
        f"watcher   {'running' if state['watcher'] else 'not running; the next hook starts it'}",
        f"turns     {turns['open']} open, {turns['finished']} finished,"
        f" {turns['abandoned']} abandoned",
        f"calls     {links['exact']} linked exactly, {links['inferred']} inferred,"
        f" {links['orphans']} orphans, {links['waiting']} waiting,"
        f" {links['side_calls']} side calls, {links['scripts']} of scripts"
        + (f" ({by_evidence})" if by_evidence else ""),
        *(
            f"          {name}: " + ", ".join(f"{n} {fate}" for fate, n in counts.items())
            for name, counts in links["by_gateway"].items()
            if len(links["by_gateway"]) > 1
        ),
        *(f"          {n} orphans: {reason}" for reason, n in links["orphan_reasons"].items()),
        f"spool     {state['spool']} waiting",
        f"outbox    {state['outbox']} spans waiting",
    ]
    if state["sink_problem"]:
        lines.append(f"sinks     {state['sink_problem']}")
    elif not state["sinks"]:
        lines.append("sinks     none: nothing is sent; set OTEL_EXPORTER_OTLP_ENDPOINT to send")
    for sink in state["sinks"]:
        lines.append(
            f"sink      {sink['name']} → {sink['target'] or 'not configured any more'}:"
            f" {sink['sent']} sent, {sink['waiting']} waiting, {sink['refused']} refused"
        )
        if sink["last_error"]:
            lines.append(f"          last error: {sink['last_error']}")
    if state["ignored_by_hooks"]:
        lines.append(
            f"ignored   {', '.join(state['ignored_by_hooks'])} of this shell, by watchers that hooks"
            " start: they send only where config.toml says; to write it there: tracebridge sink --keep"
        )
    lines += [f"note      {text}: {count}" for text, count in state["notes"].items()]
    lines += [
        f"setting   {name} = {setting['value']!r} ({setting['origin']})"
        for name, setting in state["settings"].items()
    ]
    return "\n".join(lines)
