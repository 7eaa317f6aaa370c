"""Every setting, once: its default, its names in the environment, and what it does.

Environment beats `config.toml` in the home, which beats the default. The file may also have an
`[env]` table: defaults for variables that others read, such as OTEL_EXPORTER_OTLP_ENDPOINT, since
an agent may strip them from the environment of its hooks, and so from a watcher started by one.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import platformdirs

from tracebridge.spans import Content

CONFIG = "config.toml"


class SettingsError(ValueError):
    """A setting that cannot be used; the text names it, its place and the remedy."""


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    default: str
    help: str

    @property
    def variable(self) -> str:
        return f"TRACEBRIDGE_{self.name.upper()}"


SETTINGS = (
    Setting("content", "redacted", "what spans may carry: metadata, redacted or full"),
    Setting("retention_days", "30", "how long finished turns are kept here"),
    Setting("idle_minutes", "10", "how long a watcher started by a hook waits for more work"),
    Setting("sinks", "", "where finished spans go, separated by commas: see `tracebridge sink`"),
    Setting("scrub_patterns", "", "expressions of secrets of your own, as a list or one a line"),
    Setting("untraced", "", "folders in which nothing is recorded, as a list or one a line"),
    Setting("records", "", "folders with files of other gateways' calls, as a list or one a line"),
    Setting("respan_logs", "", "where Respan's key is found, to read its request logs: ENV:NAME"),
)
# What requests, OpenSSL and gRPC take certificates from.
WAYS = (
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
)
# Where spans go, and where records come from and with whose key.
_PLACES = frozenset({"TRACEBRIDGE_SINKS", "TRACEBRIDGE_RECORDS", "TRACEBRIDGE_RESPAN_LOGS"})
# Those that may be written as a list.
LISTS = ("scrub_patterns", "untraced", "records")


@dataclass(frozen=True, slots=True)
class Origin:
    value: str
    # "default", or the variable or file that won.
    origin: str


@dataclass(frozen=True, slots=True)
class Settings:
    home: Path
    values: Mapping[str, Origin]
    # The environment as sinks see it: the process's over the file's.
    env: Mapping[str, str] = field(repr=False)

    @property
    def content(self) -> Content:
        try:
            return Content(self.values["content"].value)
        except ValueError:
            raise _unusable(self, "content", "use metadata, redacted or full") from None

    @property
    def resource(self) -> Mapping[str, str]:
        """Return the resource attributes of OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME."""
        attributes = {}
        for pair in self.env.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
            name, equals, value = pair.partition("=")
            # The specification has the whole variable ignored where it is damaged; we keep the rest.
            if equals and name.strip():
                attributes[unquote(name.strip())] = unquote(value.strip())
        if self.env.get("OTEL_SERVICE_NAME"):
            attributes["service.name"] = self.env["OTEL_SERVICE_NAME"]
        return attributes

    @property
    def retention_days(self) -> float:
        return self._number("retention_days")

    @property
    def idle_minutes(self) -> float:
        return self._number("idle_minutes")

    @property
    def scrub_patterns(self) -> tuple[re.Pattern[str], ...]:
        try:
            return tuple(re.compile(line) for line in self._lines("scrub_patterns"))
        except re.error as error:
            raise _unusable(self, "scrub_patterns", f"correct the expression: {error}") from error

    @property
    def untraced(self) -> tuple[Path, ...]:
        return tuple(Path(line).expanduser() for line in self._lines("untraced"))

    @property
    def records(self) -> tuple[Path, ...]:
        return tuple(Path(line).expanduser().absolute() for line in self._lines("records"))

    def _lines(self, name: str) -> list[str]:
        return [line for line in self.values[name].value.splitlines() if line.strip()]

    def _number(self, name: str) -> float:
        try:
            number = float(self.values[name].value)
        except ValueError:
            number = -1
        if not 0 <= number < 1e6:
            raise _unusable(self, name, "use a number that is not negative")
        return number


def home(env: Mapping[str, str]) -> Path:
    """Return where everything that we write lies; the hook knows the same rule."""
    given = env.get("TRACEBRIDGE_HOME")
    return Path(given).absolute() if given else platformdirs.user_state_path("tracebridge")


def read_settings(env: Mapping[str, str] | None = None, *, file_first: bool = False) -> Settings:
    """Return the settings in force. Raise SettingsError where one of them cannot be used.

    *file_first*: the environment is that of an agent, and may have come from a project: its
    settings, or a .env file that the agent reads. What the user's file says beats it, and where
    spans go, by which way and with whose key is for the file alone to say.
    """
    env = os.environ if env is None else env
    place = home(env)
    file = place / CONFIG
    written = _read_file(file)
    # Our gateway's own business, read by itself.
    written.pop("gateway", None)
    file_env = written.pop("env", {})
    if not isinstance(file_env, dict):
        raise SettingsError(f'{file}: [env] is not a table; write NAME = "value" lines below it')
    if file_first:
        env = without_destinations(env)
    names = [setting.name for setting in SETTINGS]
    for name in written:
        # A typing error in `content` must not send what was to be kept back.
        if name not in names:
            raise SettingsError(f"{file}: {name}: no such setting; choose from {', '.join(names)}")
    values = {}
    for setting in SETTINGS:
        origin = Origin(setting.default, "default")
        if setting.name in written:
            origin = Origin(_text(file, setting.name, written[setting.name]), str(file))
        if setting.variable in env and not (file_first and setting.name in written):
            origin = Origin(env[setting.variable], setting.variable)
        values[setting.name] = origin
    merged = {name: _text(file, f"env.{name}", value) for name, value in file_env.items()}
    for name, value in merged.items():
        if not name or "=" in name or "\0" in name + value:
            raise SettingsError(
                f"{file}: env.{name!r} is nothing that a variable can be; correct it"
            )
    merged = dict(env) | merged if file_first else merged | dict(env)
    merged["TRACEBRIDGE_SINKS"] = values["sinks"].value
    settings = Settings(place, values, merged)
    # Now, and not when a turn is half told.
    _ = settings.content, settings.retention_days, settings.idle_minutes
    _ = settings.scrub_patterns
    return settings


def without_destinations(env: Mapping[str, str]) -> dict[str, str]:
    """Return *env* without what says where spans go, by which way and with whose key."""
    return {name: value for name, value in env.items() if not is_destination(name)}


def is_destination(variable: str) -> bool:
    named = variable in _PLACES or variable.startswith(_destinations())
    return named or is_way(variable)


def is_way(variable: str) -> bool:
    """Say whether a variable names a proxy, or whom to believe that it is the backend."""
    return variable.upper().endswith("_PROXY") or variable in WAYS


@cache
def _destinations() -> tuple[str, ...]:
    """Return how the variables begin that say where spans go, or with whose key."""
    # A sink's own begin with its name; Datadog's are older than that rule.
    sinks = (Path(__file__).parent / "sinks").glob("[a-z]*.py")
    return ("OTEL_EXPORTER_", "DD_", *(f"{file.stem.upper()}_" for file in sinks))


def _text(file: Path, name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if name in LISTS and isinstance(value, list):
        return "\n".join(_text(file, f"{name}[]", each) for each in value)
    if not isinstance(value, str | int | float):
        raise SettingsError(f'{file}: {name} is not a text; write {name} = "..."')
    return str(value)


def _read_file(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; make it readable or remove it") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{file}: {error}; correct it or remove it") from error


def _unusable(settings: Settings, name: str, remedy: str) -> SettingsError:
    value = settings.values[name]
    return SettingsError(f"{name} = {value.value!r} (from {value.origin}): {remedy}")
