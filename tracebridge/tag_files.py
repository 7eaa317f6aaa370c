"""Tags from files of the user and of the project in which an agent works.

A project's files come with the project, from whoever wrote it: they can say who the work is for,
and nothing else. They are read as files of the project only, not through a link out of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from tracebridge.agents import Agent, Wish
from tracebridge.model import Tags
from tracebridge.tags import over, parse_file, parse_telemetry

NAME = "respan.json"
_LONGEST = 256 * 1024

Parser = Callable[[bytes], tuple[Tags | None, str | None]]


def read_tags(agent: Agent, cwd: Path, home: Path) -> tuple[Tags | None, list[str]]:
    """Return the tags of work in *cwd*, and in words what is wrong with their files."""
    tags: Tags | None = None
    problems = []
    project = project_of(cwd, home)
    for path, parse in _files(agent, cwd, project, home):
        try:
            data = _content(path, project if path.is_relative_to(project) else None)
        except OSError as error:
            problems.append(f"tags not readable: {path}: {error.strerror}")
            continue
        if data is not None:
            found, problem = parse(data)
            tags = over(tags, found)
            if problem is not None:
                problems.append(f"tags not readable: {path}: {problem}")
    return tags, problems


def project_of(cwd: Path, home: Path) -> Path:
    """Return the project that *cwd* is in: where its repository begins, else *cwd* itself."""
    for folder in (cwd, *cwd.parents):
        if folder in (home, folder.parent):
            break
        if (folder / ".git").exists():
            return folder
    return cwd


def _files(agent: Agent, cwd: Path, project: Path, home: Path) -> Iterator[tuple[Path, Parser]]:
    """Yield the files that may hold tags; what a later one says wins."""
    yield _own_folder(agent, "global", home, cwd) / NAME, parse_file
    folders = [folder for folder in (cwd, *cwd.parents) if folder.is_relative_to(project)]
    for folder in reversed(folders):
        yield folder / ".claude" / "settings.json", parse_telemetry
        yield folder / f".{NAME}", parse_file
        yield _own_folder(agent, "local", home, folder) / NAME, parse_file


def _own_folder(agent: Agent, scope: str, home: Path, project: Path) -> Path:
    wish = Wish(scope=scope, home=home, project=project, env=os.environ, commands={})
    return agent.settings_folder(wish)


def _content(path: Path, within: Path | None) -> bytes | None:
    """Return what is in a file, None if there is none. Raise OSError if it cannot be read."""
    try:
        if not path.exists():
            return None
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise OSError(0, "it is a link out of the project")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a file")
        data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise OSError(0, "too long")
    return data.removeprefix(b"\xef\xbb\xbf")
