"""Where Gemini CLI sends its requests: variables alone say so, and one .env file, never two.

The first .env file found going up from the project is read and all others are not, those of the
home included; the shell beats it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tracebridge.agents._installed import installed_hooks
from tracebridge.agents.gemini_cli.wiring import (
    EVENTS,
    SYSTEM_SETTINGS,
    SYSTEM_SETTINGS_DEFAULT,
)
from tracebridge.config_files import ConfigFile, Place, read_dotenv, read_json
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

# A call is known by the tool calls in it and by nothing else, so there has to be one.
PROMPT = "List the files of this folder with your tool for that, then reply with the one word ready"
BASE_URL, VERTEX_BASE_URL = "GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL"
GEMINI_KEY, GOOGLE_KEY = "GEMINI_API_KEY", "GOOGLE_API_KEY"
USE_VERTEX = "GOOGLE_GENAI_USE_VERTEXAI"
HEADERS = "GEMINI_CLI_CUSTOM_HEADERS"
# The weakest first.
SCOPES = ("user", "project", "system")


def user_folder(place: Place) -> Path:
    given = place.env.get("GEMINI_CLI_HOME")
    return (Path(given) if given else place.home) / ".gemini"


def read_setup(place: Place) -> SetUp:
    folder, project = user_folder(place), place.project / ".gemini"
    system = place.env.get(SYSTEM_SETTINGS)
    default = place.root / SYSTEM_SETTINGS_DEFAULT.lstrip("/")
    files = {
        "user": read_json(folder / "settings.json", comments=True),
        "system": read_json(Path(system) if system else default, comments=True),
        # Read, or not, depending on which others there are.
        "user env": read_dotenv(folder / ".env"),
    }
    if project != folder:
        files["project"] = read_json(project / "settings.json", comments=True)
    if (path := _env_file(place, folder)) is not None:
        files["env"] = read_dotenv(path)
    return SetUp(place, files)


def scopes(setup: SetUp) -> list[ConfigFile]:
    return [setup.files[name] for name in SCOPES if name in setup.files]


def variable(setup: SetUp, name: str, *, secret: bool = False) -> Answer:
    file = in_file(setup.files.get("env"), name)
    return answer(name, in_env(setup.env, name), file, secret=secret)


def auth_type(setup: SetUp) -> Answer:
    keys = ("security", "auth", "selectedType")
    return Answer("selectedType", strongest_first(scopes(setup), *keys))


def uses_vertex(setup: SetUp) -> bool:
    """Say whether requests go to Vertex: what was selected decides, the variable only without."""
    selected = auth_type(setup).value
    if selected:
        return selected == "vertex-ai"
    return variable(setup, USE_VERTEX).value.lower() in {"1", "true"}


def routing(setup: SetUp) -> Routing:
    vertex = uses_vertex(setup)
    keys = [variable(setup, name, secret=True) for name in (GEMINI_KEY, GOOGLE_KEY)]
    models = strongest_first(scopes(setup), "model", "name")
    base = variable(setup, VERTEX_BASE_URL if vertex else BASE_URL)
    return Routing(
        family="vertex" if vertex else "gemini",
        base_url=base,
        models_url="" if vertex else f"{base.value.rstrip('/')}/v1beta/models",
        default_url="https://aiplatform.googleapis.com"
        if vertex
        else "https://generativelanguage.googleapis.com",
        model=Answer("model", (*variable(setup, "GEMINI_MODEL").said, *models)),
        keys=tuple(reversed(keys)) if vertex else tuple(keys),
        headers=tuple(_headers(variable(setup, HEADERS))),
    )


def hooks(setup: SetUp) -> list[InstalledHook]:
    return installed_hooks(scopes(setup))


def expected_events() -> tuple[str, ...]:
    return EVENTS


def one_turn(options: Sequence[str]) -> list[str]:
    return ["--skip-trust", *options, "-p", PROMPT]


def by_hand(routes: Mapping[str, str], key_variable: str | None) -> ByHand:
    names = {"gemini": BASE_URL, "vertex": VERTEX_BASE_URL}
    env: dict[str, str | Reference] = {
        name: routes[family] for family, name in names.items() if family in routes
    }
    if env and key_variable is not None:
        env[GEMINI_KEY] = Reference(key_variable)
    return ByHand(env)


def _env_file(place: Place, folder: Path) -> Path | None:
    """Return the one .env file that Gemini CLI reads from the project."""
    for above in (place.project, *place.project.parents):
        for path in (above / ".gemini" / ".env", above / ".env"):
            if path.exists():
                return path
        if (above / ".git").exists() or above == place.home:
            break
    return next((p for p in (folder / ".env", place.home / ".env") if p.exists()), None)


def _headers(given: Answer) -> Iterator[Answer]:
    for pair in given.value.split(",") if given.won else ():
        name, colon, value = pair.partition(":")
        if colon and name.strip() and given.won is not None:
            said = Said(value.strip(), given.won.source)
            yield Answer(name.strip(), (said,), secret=True)
