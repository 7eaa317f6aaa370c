"""Where spans go, taken over from the user's shell into `config.toml`.

A watcher that a hook started looks nowhere else: the environment that it has is its agent's, who
may have loaded it from a project.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tracebridge.config_files import replace_file
from tracebridge.edits import Change, Put, edited
from tracebridge.routing import is_loopback
from tracebridge.settings import CONFIG, Settings, SettingsError, is_way, read_settings
from tracebridge.sinks import lasting_sinks


class _Asked(dict[str, str]):
    """An environment that remembers what was looked up in it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        super().__init__(env)
        self.names: set[str] = set()

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.names.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return super().__getitem__(name)


def ignored(settings: Settings) -> list[str]:
    """Return the variables that say where spans go, and that no watcher of a hook obeys."""
    asked = _Asked(settings.env)
    sinks, _ = lasting_sinks(asked)
    if not sinks:
        return []
    # The rest is looked up no sooner than something is sent.
    later = {name for name in asked if name.startswith("OTEL_EXPORTER_OTLP_")}
    if any("://" in sink.target and not is_loopback(sink.target) for sink in sinks):
        later |= {name for name in asked if is_way(name)}
    file = _of_file(settings)
    names = (asked.names | later) & asked.keys()
    return sorted(n for n in names if settings.env[n] and file.get(n) != settings.env[n])


def keep(settings: Settings, *, over: bool, dry_run: bool = False) -> list[str]:
    """Write what is ignored into `config.toml`, for its owner alone; return which variables.

    Unless *over* is asked for, what the file says of sinks stays. Raise SettingsError where the
    file must not be touched.
    """
    file, env = settings.home / CONFIG, settings.env
    there = _of_file(settings)
    decided = bool(lasting_sinks(there)[0])
    names = [
        name
        for name in ignored(settings)
        if over or (not there.get(name) and (is_way(name) or not decided))
    ]
    if not names or dry_run:
        return names
    # What edits TOML takes longer to load than `status`, which asks for less, may take.
    from tracebridge.edits.toml_text import TomlText  # noqa: PLC0415

    try:
        text = file.read_text("utf-8") if file.exists() else ""
        changes = list(_changes(TomlText().parse(text), {name: env[name] for name in names}))
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(file, edited(text, TomlText(), changes).encode(), 0o600)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: {error}; nothing was changed") from error
    return names


def _of_file(settings: Settings) -> Mapping[str, str]:
    return read_settings({"TRACEBRIDGE_HOME": str(settings.home)}).env


def _changes(written: Mapping[str, object], values: dict[str, str]) -> Iterator[Change]:
    if (sinks := values.pop("TRACEBRIDGE_SINKS", None)) is not None:
        yield Put(("sinks",), sinks)
    if "env" not in written and values:
        yield Put(("env",), values)
    else:
        for name, value in values.items():
            yield Put(("env", name), value)


def told(names: list[str], file: Path, *, dry_run: bool) -> str:
    """Return what was kept and why, for people."""
    done = "would be written" if dry_run else "written"
    return (
        f"{file}: {', '.join(names)} of this shell {done}, readable by you alone:"
        " a watcher that a hook starts sends only where this file says"
    )
