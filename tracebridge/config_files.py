"""The files and variables that an agent's set-up is made of, read once.

Reading never fails: a file that cannot be read or understood is one with a *problem*. Where
something stands is kept, so that whoever finds it wrong can name file and line.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tracebridge.edits import Format, KeyPath
from tracebridge.edits.env_lines import EnvLines
from tracebridge.edits.json_text import JsonText
from tracebridge.edits.toml_text import TomlText

# No settings file is longer; a log that somebody named like one is.
_LONGEST = 4 << 20
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([\w.-]+)\s*=")


@dataclass(frozen=True, slots=True)
class Place:
    """Whose set-up is looked at: a home, a project and an environment."""

    home: Path
    project: Path
    env: Mapping[str, str] = field(repr=False)
    # Below it lie the settings of the system's administrator.
    root: Path = Path("/")

    def shown(self, path: Path) -> str:
        """Return a path as people write it."""
        return f"~/{path.relative_to(self.home)}" if path.is_relative_to(self.home) else str(path)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """One file as it was when it was read."""

    path: Path
    exists: bool = False
    text: str = field(default="", repr=False)
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    # What is wrong with it, beginning with the line where that is known.
    problem: str | None = None
    # How it is edited; None for what is no file, or none that is understood.
    format: Format | None = field(default=None, repr=False)

    def at(self, *keys: str) -> Any:
        """Return the value at *keys*, None where there is none."""
        value: Any = self.values
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def table(self, *keys: str) -> Mapping[str, Any]:
        """Return the object at *keys*, an empty one where there is none."""
        value = self.at(*keys)
        return value if isinstance(value, Mapping) else {}

    def line_of(self, keys: KeyPath) -> int | None:
        if isinstance(self.format, JsonText):
            return self.format.line_of(self.text, keys)
        if isinstance(self.format, TomlText):
            return _toml_lines(self.text).get(keys)
        if isinstance(self.format, EnvLines):
            return _env_lines(self.text).get(keys)
        return None


def read_json(path: Path, *, comments: bool = False, trailing_commas: bool = False) -> ConfigFile:
    """Read a JSON file; what an agent's own reader forgives is not a problem either."""
    text = _read(path)
    form = JsonText(comments=comments, trailing_commas=trailing_commas)
    return text if isinstance(text, ConfigFile) else _parsed(path, text, form)


def parse_json(path: Path, text: str) -> ConfigFile:
    """Return what a text says that is no file: it is not to be edited, and has no lines."""
    return replace(_parsed(path, text, JsonText(comments=True, trailing_commas=True)), format=None)


def read_toml(path: Path) -> ConfigFile:
    text = _read(path)
    return text if isinstance(text, ConfigFile) else _parsed(path, text, TomlText())


def read_dotenv(path: Path) -> ConfigFile:
    text = _read(path)
    return text if isinstance(text, ConfigFile) else _parsed(path, text, EnvLines())


def _parsed(path: Path, text: str, form: Format) -> ConfigFile:
    try:
        values = form.parse(text)
    except ValueError as error:
        place = re.search(r"line (\d+)", str(error))
        # The rest of a message may quote what stands there, or only say "not JSON" again.
        said = "not TOML" if isinstance(form, TomlText) else str(error).partition(": ")[2]
        problem = f"line {place[1]}: {said}" if place else str(error)
        return ConfigFile(path, exists=True, text=text, problem=problem)
    return ConfigFile(path, exists=True, text=text, values=values, format=form)


class EditError(Exception):
    """An edit that was not made; the text says of which file, why, and what to do."""


def edited(file: ConfigFile, keys: KeyPath, value: Any) -> str:
    """Return the file's text with *value* at *keys* (None: without it) and all else as it was."""
    if file.format is None:
        raise EditError(f"{file.path}: this is no file; change it by hand")
    try:
        if value is None:
            return file.format.delete(file.text, keys)
        return file.format.put(file.text, keys, value)
    except (ValueError, KeyError, TypeError) as error:
        name = ".".join(map(str, keys))
        raise EditError(f"{file.path}: {name}: {error}; change it by hand") from error


def write(path: Path, text: str, before: str, backups: Path) -> Path:
    """Put *text* in the place of *before*, all or nothing; return where the file as it was is kept.

    Mode and links stay. Raise EditError if the file is not any more what was read.
    """
    path = path.resolve()
    try:
        if _text(path.read_bytes()) != before:
            raise EditError(f"{path}: somebody else just changed it; run this again")
        bom = path.read_bytes().startswith(b"\xef\xbb\xbf")
        data = (b"\xef\xbb\xbf" if bom else b"") + text.encode()
        backups.mkdir(mode=0o700, parents=True, exist_ok=True)
        old = path.read_bytes()
        backup = backups / f"{path.name}.{hashlib.sha256(old).hexdigest()[:16]}"
        replace_file(backup, old, 0o600)
        replace_file(path, data, path.stat().st_mode & 0o777)
    except OSError as error:
        raise EditError(f"{path}: {error.strerror}; nothing was changed") from error
    return backup


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all. Raise OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> str | ConfigFile:
    try:
        if not path.is_file():
            return ConfigFile(path, exists=path.exists(), problem=_no_file(path))
        with path.open("rb") as file:
            data = file.read(_LONGEST + 1)
    except OSError as error:
        return ConfigFile(path, exists=True, problem=f"{error.strerror}")
    if len(data) > _LONGEST:
        return ConfigFile(path, exists=True, problem="too long for a settings file")
    try:
        return _text(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return ConfigFile(path, exists=True, problem=f"line {line}: not UTF-8")


def _no_file(path: Path) -> str | None:
    if path.exists():
        return "not a file"
    return "a link to a file that is not there" if path.is_symlink() else None


def _text(data: bytes) -> str:
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")


def _env_lines(text: str) -> dict[KeyPath, int]:
    lines = enumerate(text.splitlines(), start=1)
    return {(found[1],): number for number, line in lines if (found := _ASSIGNMENT.match(line))}


def _toml_lines(text: str) -> dict[KeyPath, int]:
    """Return the lines of plain assignments; of what is written otherwise the line is not known."""
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?$", line):
            table = _toml_keys(header[1])
            lines.setdefault(table, number)
        elif found := re.match(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*[\w-]+)*)\s*=", line):
            lines.setdefault((*table, *_toml_keys(found[1])), number)
    return lines


def _toml_keys(text: str) -> KeyPath:
    words = re.findall(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)", text)
    return tuple(next(filter(None, word), "") for word in words)
