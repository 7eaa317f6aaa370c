"""What `integrate` writes for Gemini CLI: hooks in settings.json, where requests go in `.env`.

Base URLs and headers come from the environment alone, and of `.env` files Gemini CLI takes the
nearest one only. A variable of the shell beats that of the file. The key comes from there, too, and
from nowhere else, so it is never ours to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tracebridge.agents import Edit, Wish
from tracebridge.agents._hooks import is_hooked, unhook_changes
from tracebridge.agents.gemini_cli.wiring import CUSTOM_HEADERS, wire_changes
from tracebridge.edits import Change, Include, Put, value_at
from tracebridge.edits.env_lines import EnvLines
from tracebridge.edits.json_text import JsonText
from tracebridge.gateway_choice import LAYOUT, LOCAL
from tracebridge.keys import shell_command

BASE_URLS = {"gemini": "GOOGLE_GEMINI_BASE_URL", "vertex": "GOOGLE_VERTEX_BASE_URL"}
KEY = "GEMINI_API_KEY"
AUTH = ("security", "auth", "selectedType")
SETTINGS = JsonText(comments=True)
# The id of each response, which stands nowhere else, so that our gateway's calls are linked by it.
TELEMETRY = {
    "enabled": True,
    "target": "local",
    "otlpEndpoint": LOCAL,
    "otlpProtocol": "http",
    "logPrompts": False,
}


def settings_folder(wish: Wish) -> Path:
    home = Path(wish.env["GEMINI_CLI_HOME"]) if wish.env.get("GEMINI_CLI_HOME") else wish.home
    return (wish.project if wish.scope == "local" else home) / ".gemini"


def edits(wish: Wish) -> Iterable[Edit]:
    if wish.traceparent:
        raise ValueError("--traceparent is Claude Code's; Gemini CLI sends none")

    def wire(settings: Mapping[str, Any]) -> Iterator[Change]:
        yield from wire_changes(settings, wish.commands)
        if wish.model is not None:
            yield Put(("model", "name"), wish.model)
        # Logged in with Google it would not ask the gateway at all.
        if wish.key is not None and value_at(settings, AUTH) not in {"gemini-api-key", "vertex-ai"}:
            yield Put(AUTH, "gemini-api-key")
        if wish.routes.get("gemini") == LOCAL + LAYOUT["gemini"] and "telemetry" not in settings:
            yield Put(("telemetry",), TELEMETRY)

    def wire_env(variables: Mapping[str, Any]) -> Iterator[Change]:
        del variables
        for family, name in BASE_URLS.items():
            if family in wish.routes:
                yield Put((name,), wish.routes[family])
        for name, value in wish.headers.items():
            yield Include((CUSTOM_HEADERS,), f"{name}: {value}", ",")

    folder = settings_folder(wish)
    yield Edit(path=folder / "settings.json", form=SETTINGS, wire=wire, unwire=unhook_changes)
    yield Edit(path=folder / ".env", form=EnvLines(), wire=wire_env)


def remarks(wish: Wish) -> Iterator[str]:
    if wish.key not in {None, f"ENV:{KEY}"}:
        yield (
            f"Gemini CLI takes its key from {KEY} alone: put "
            f'export {KEY}="$({shell_command(wish.key or "")})" into your shell\'s start-up file'
        )
    for name in (*BASE_URLS.values(), CUSTOM_HEADERS):
        if name in wish.env and (wish.routes or wish.headers):
            yield f"{name} is set in your shell and beats {settings_folder(wish) / '.env'}; unset it"
    nearer = [wish.project / ".gemini" / ".env", wish.project / ".env"]
    if (wish.routes or wish.headers) and wish.scope == "global":
        for path in nearer:
            if path.exists() and path != settings_folder(wish) / ".env":
                yield f"{path} is nearer: in this project Gemini CLI reads no other; add the lines there"
    other = (wish.home if wish.scope == "local" else wish.project) / ".gemini" / "settings.json"
    if other != settings_folder(wish) / "settings.json" and _is_hooked_at(other):
        yield f"hooks stand in {other} too: each event is told twice in this project; remove one"


def _is_hooked_at(path: Path) -> bool:
    try:
        return is_hooked(SETTINGS.parse(path.read_text("utf-8-sig")))
    except (OSError, ValueError):
        return False
