"""What `integrate` writes into Claude Code's settings: hooks, and where requests go.

`env` of a settings file beats the shell, and a credential that is not wanted is set to "" there:
else both would be sent. A key that only a reference names is printed by `apiKeyHelper` when it is
needed. `ANTHROPIC_CUSTOM_HEADERS` of one file replaces that of another as a whole.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tracebridge.agents import Edit, Wish
from tracebridge.agents._hooks import is_hooked
from tracebridge.agents.claude_code.wiring import unwire_changes, wire_changes
from tracebridge.edits import Change, Include, Put
from tracebridge.edits.json_text import JsonText
from tracebridge.fields import dict_of, text_of
from tracebridge.keys import shell_command
from tracebridge.lines import parse_object

BASE_URL = "ANTHROPIC_BASE_URL"
CUSTOM_HEADERS = "ANTHROPIC_CUSTOM_HEADERS"
KEY, TOKEN = "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"
# The four that make Claude Code send a traceparent to a gateway, and one that keeps its own spans,
# which nobody asked for, from going to whatever listens where OpenTelemetry looks by default.
TRACEPARENT = {
    "CLAUDE_CODE_ENABLE_TELEMETRY": "1",
    "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1",
    "CLAUDE_CODE_PROPAGATE_TRACEPARENT": "1",
    "OTEL_TRACES_EXPORTER": "otlp",
}
SPANS_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
NOWHERE = "http://127.0.0.1:9/v1/traces"


def settings_folder(wish: Wish) -> Path:
    if wish.scope == "local":
        return wish.project / ".claude"
    return _user_folder(wish)


def edits(wish: Wish) -> Iterable[Edit]:
    # Of a project's two files the one that is never committed.
    name = "settings.local.json" if wish.scope == "local" else "settings.json"
    if wish.traceparent and wish.scope == "local":
        raise ValueError(
            "Claude Code takes its telemetry settings from the user's file alone; "
            "use --traceparent with --global"
        )

    def wire(settings: Mapping[str, Any]) -> Iterator[Change]:
        if not isinstance(settings.get("env", {}), dict):
            raise ValueError('"env" is not an object')
        yield from wire_changes(settings, wish.commands, light=wish.light)
        yield from _routing(settings, wish)

    yield Edit(path=settings_folder(wish) / name, form=JsonText(), wire=wire, unwire=unwire_changes)


def _routing(settings: Mapping[str, Any], wish: Wish) -> Iterator[Change]:
    if "anthropic" in wish.routes:
        yield Put(("env", BASE_URL), wish.routes["anthropic"])
    if wish.key is not None:
        yield from _key(wish.key)
    if wish.model is not None:
        yield Put(("model",), wish.model)
    if wish.headers:
        other = _headers_elsewhere(wish)
        if other is not None and CUSTOM_HEADERS not in dict_of(settings.get("env")):
            raise ValueError(
                f"{CUSTOM_HEADERS} stands in {other}, and a value here would hide it; "
                "add the header there"
            )
        for name, value in wish.headers.items():
            yield Include(("env", CUSTOM_HEADERS), f"{name}: {value}", "\n")
    if wish.traceparent:
        env = dict_of(settings.get("env"))
        exporting = {"OTEL_TRACES_EXPORTER", SPANS_ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT"}
        yield from (
            Put(("env", name), value)
            for name, value in TRACEPARENT.items()
            if name != "OTEL_TRACES_EXPORTER" or env.get(name, "none") == "none"
        )
        if not exporting & env.keys():
            yield Put(("env", SPANS_ENDPOINT), NOWHERE)


def _key(reference: str) -> Iterator[Change]:
    if reference == f"ENV:{TOKEN}":
        yield Put(("env", KEY), "")
        return
    yield Put(("env", TOKEN), "")
    if reference != f"ENV:{KEY}":
        yield Put(("env", KEY), "")
        yield Put(("apiKeyHelper",), shell_command(reference))


def _headers_elsewhere(wish: Wish) -> str | None:
    """Return in which place that ours would win over there are headers already."""
    if wish.env.get(CUSTOM_HEADERS):
        return "your shell's environment"
    if wish.scope == "local":
        for path in (
            settings_folder(wish) / "settings.json",
            _user_folder(wish) / "settings.json",
        ):
            if text_of(dict_of(_read(path).get("env")), CUSTOM_HEADERS):
                return str(path)
    return None


def remarks(wish: Wish) -> Iterator[str]:
    user = _user_folder(wish)
    files = [
        user / "settings.json",
        wish.project / ".claude" / "settings.json",
        wish.project / ".claude" / "settings.local.json",
    ]
    hooked = [path for path in dict.fromkeys(files) if is_hooked(_read(path))]
    if len(hooked) > 1:
        yield (
            f"hooks stand in {' and in '.join(map(str, hooked))}: each event is told twice in this "
            f"project; take one out with --remove{' --local' if user / 'settings.json' in hooked else ''}"
        )
    for path in dict.fromkeys(files):
        plugins = dict_of(_read(path).get("enabledPlugins"))
        ours = [name for name, on in plugins.items() if on and name.startswith("tracebridge@")]
        if ours and hooked:
            yield (
                f"{path} enables the plugin {ours[0]} too: each event is told twice; disable it "
                f"with `claude plugin disable {shlex.quote(ours[0])}` or take the hooks out with --remove"
            )


def _user_folder(wish: Wish) -> Path:
    given = wish.env.get("CLAUDE_CONFIG_DIR")
    return Path(given) if given else wish.home / ".claude"


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = parse_object(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError:
        return {}
    return settings if isinstance(settings, dict) else {}
