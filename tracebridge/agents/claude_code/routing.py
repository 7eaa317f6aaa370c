"""Where Claude Code sends its requests: settings files and environment, and which of them wins.

Of each variable the strongest scope wins, alone: managed, local, project, user, and the shell last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tracebridge.agents._installed import installed_hooks
from tracebridge.agents.claude_code.wiring import HINT_HEADERS, LIGHT_EVENTS
from tracebridge.config_files import ConfigFile, Place, read_json
from tracebridge.routing import (
    Answer,
    ByHand,
    InstalledHook,
    Reference,
    Routing,
    Said,
    SetUp,
    answer,
    in_env,
    in_file,
    strongest_first,
)

PROMPT = "Reply with the one word ready"
BASE_URL, API_KEY, TOKEN = "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"
HEADERS = "ANTHROPIC_CUSTOM_HEADERS"
# The weakest first.
SCOPES = ("user", "project", "local", "managed")
MANAGED = "etc/claude-code/managed-settings.json"


def config_folder(place: Place) -> Path:
    given = place.env.get("CLAUDE_CONFIG_DIR")
    return Path(given) if given else place.home / ".claude"


def read_setup(place: Place) -> SetUp:
    folder = config_folder(place)
    given = place.env.get("CLAUDE_CONFIG_DIR")
    project = place.project / ".claude"
    files = {
        "user": folder / "settings.json",
        "project": project / "settings.json",
        "local": project / "settings.local.json",
        "managed": place.root / MANAGED,
        "state": (Path(given) if given else place.home) / ".claude.json",
    }
    if project == folder:
        # Somebody works in the home itself: its settings are the user's.
        del files["project"]
    return SetUp(place, {name: read_json(path) for name, path in files.items()})


def scopes(setup: SetUp) -> list[ConfigFile]:
    return [setup.files[name] for name in SCOPES if name in setup.files]


def variable(setup: SetUp, name: str, *, secret: bool = False) -> Answer:
    """Return what is said about a variable, by settings files and by the shell."""
    files = strongest_first(scopes(setup), "env", name)
    return answer(name, *files, in_env(setup.env, name), secret=secret)


def routing(setup: SetUp) -> Routing:
    models = strongest_first(scopes(setup), "model")
    from_env = variable(setup, "ANTHROPIC_MODEL").said
    base = variable(setup, BASE_URL)
    return Routing(
        family="anthropic",
        base_url=base,
        models_url=f"{base.value.rstrip('/')}/v1/models",
        default_url="https://api.anthropic.com",
        model=Answer("model", (*from_env, *models)),
        keys=(
            variable(setup, API_KEY, secret=True),
            variable(setup, TOKEN, secret=True),
            Answer("apiKeyHelper", strongest_first(scopes(setup), "apiKeyHelper"), secret=True),
        ),
        headers=tuple(_headers(variable(setup, HEADERS))),
        timeout_ms=variable(setup, "API_TIMEOUT_MS"),
    )


def hooks(setup: SetUp) -> list[InstalledHook]:
    return installed_hooks(scopes(setup))


def expected_events() -> tuple[str, ...]:
    # A light integration has no others.
    return LIGHT_EVENTS


def one_turn(options: Sequence[str]) -> list[str]:
    return ["-p", PROMPT, *options]


def by_hand(routes: Mapping[str, str], key_variable: str | None) -> ByHand:
    if "anthropic" not in routes:
        return ByHand({})
    env: dict[str, str | Reference] = {BASE_URL: routes["anthropic"], HINT_HEADERS: "1"}
    if key_variable is not None:
        # Both would be sent; the empty one is not.
        env |= {API_KEY: Reference(key_variable), TOKEN: ""}
    return ByHand(env)


def plugin(setup: SetUp) -> Said | None:
    """Return what turns our plugin on, whose hooks come on top of those in the settings."""
    for file in scopes(setup):
        for name, on in file.table("enabledPlugins").items():
            if name.partition("@")[0] == "tracebridge" and on is True:
                return in_file(file, "enabledPlugins", name)
    return None


def _headers(given: Answer) -> Iterator[Answer]:
    """Return the extra headers: only those of the strongest scope are sent."""
    if given.won is None:
        return
    for line in given.value.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip():
            said = Said(value.strip(), given.won.source)
            yield Answer(name.strip(), (said,), secret=True)
