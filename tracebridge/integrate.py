"""What agents need into their settings and out again, leaving everything else as it was.

Agents say in edits what shall stand in which file; all reading and writing of these files is here.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import orjson

from tracebridge import gateway_choice
from tracebridge.agents import Agent, Edit, Wish, agents
from tracebridge.edits import (
    BOM,
    Change,
    Delete,
    Format,
    Include,
    KeyPath,
    Put,
    changed,
    edited,
    pieces,
    value_at,
)
from tracebridge.edits.json_text import JsonText
from tracebridge.keys import KeyReferenceError, check, parse_reference

# What we wrote where, so that --remove can put back the very bytes that were there before.
RECORD = "integrations.json"
ROUTE_PROVIDER_HEADER = "X-Respan-Route-Provider"
TAGS_FILE = "respan.json"
Told = TypeVar("Told")
# How often to plan anew when somebody else writes to a file at the same time.
ATTEMPTS = 5


class IntegrateError(Exception):
    """A settings file that must not be touched; the text says which, why and what to do."""


class _ChangedMeanwhileError(IntegrateError):
    """Somebody else wrote to the file that the plan was made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user asked for; None: as the last time."""

    gateway: tuple[str, ...] | None = None
    base_url: str | None = None
    key: str | None = None
    model: str | None = None
    route_provider: str | None = None
    traceparent: bool | None = None
    trust_hooks: bool | None = None
    light: bool | None = None
    # What shall stand in the agent's `respan.json`.
    tags: Mapping[str, Any] | None = None

    def over(self, last: Mapping[str, Any]) -> Options:
        known = {name: last.get(name) for name in asdict(self)}
        asked = {name: value for name, value in asdict(self).items() if value is not None}
        if self.gateway == ("none",):
            # With the gateway goes what was for it.
            known |= {"key": None, "route_provider": None}
        if self.tags and isinstance(known["tags"], dict):
            asked["tags"] = {**known["tags"], **self.tags}
        merged = {**known, **asked}
        if merged["gateway"] is not None:
            merged["gateway"] = tuple(merged["gateway"])
        return Options(**merged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose settings, and for which projects."""

    # "global" or "local".
    scope: str
    home: Path
    project: Path
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file as it is and as it shall be; None where there is no file."""

    path: Path
    before: bytes | None
    after: bytes | None
    is_folder: bool = False
    # What there is to remember of it; None: nothing any more.
    entry: Mapping[str, Any] | None = None
    # Folders that were made for it alone, the innermost first.
    folders: tuple[Path, ...] = ()
    # Why a file of ours is left where it is.
    kept: str | None = None

    @property
    def changes(self) -> bool:
        return self.before != self.after

    @property
    def diff(self) -> str:
        """Return what changes as a unified diff, "" if nothing does."""
        if self.is_folder and self.changes:
            return f"{'delete' if self.after is None else 'make'} folder {self.path}\n"
        old, new = (
            (data or b"").decode("utf-8", "replace").splitlines(keepends=True)
            for data in (self.before, self.after)
        )
        names = [
            "/dev/null" if data is None else str(self.path) for data in (self.before, self.after)
        ]
        lines = difflib.unified_diff(old, new, names[0], names[1])
        return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done for one agent, or would be."""

    changes: tuple[FileChange, ...]
    backups: Mapping[Path, Path] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    wish: Wish


def hooks_directory() -> Path:
    """Return where the hooks lie: in the wheel beside the code, in a checkout beside the package."""
    package = Path(__file__).resolve().parent
    for place in (package / "_hooks", package.parent / "hooks"):
        if (place / "tracebridge_hook.py").is_file():
            return place
    raise IntegrateError(f"{package}: the hooks are missing; install tracebridge again")


def hook_commands(agent: Agent, home: Path) -> dict[str, str]:
    """Return the shell commands that run the hook.

    By the interpreter's absolute path: a version manager's shim would cost ten times the hook.
    """
    hooks = hooks_directory()
    whose = [agent.SLUG, str(home)]
    python = [sys.executable, "-I", "-S", str(hooks / "tracebridge_hook.py"), *whose]
    sh = ["/bin/sh", str(hooks / "tracebridge_hook.sh"), *whose]
    return {"hook": shlex.join(python), "hot": shlex.join(sh)}


def integrate(
    agent: Agent,
    place: Place,
    options: Options,
    home: Path,
    *,
    remove: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Set up *agent*, or take it out again; with *dry_run* only say what would change.

    Raise IntegrateError where a file must not be touched; then none of the agent's is, unless the
    message says so.
    """
    if dry_run:
        return _planned(agent, place, options, home, remove=remove)[0]
    for attempt in range(ATTEMPTS):
        try:
            with _alone(home):
                outcome, record = _planned(agent, place, options, home, remove=remove)
                backups = _carry_out(outcome.changes, record, home, remove=remove)
            # Only now do the files say what there is to remark.
            more = () if remove else tuple(agent.remarks(outcome.wish))
            return replace(outcome, backups=backups, remarks=(*outcome.remarks, *more))
        except _ChangedMeanwhileError:
            if attempt == ATTEMPTS - 1:
                raise
        except OSError as error:
            raise IntegrateError(f"{error.filename or home}: {error.strerror}") from error
    raise AssertionError("unreachable")


def gateway_upstreams(home: Path) -> dict[str, str]:
    """Return by agent where requests went before `--gateway local`: what it is to stand before."""
    return dict(_table(_read_record(home), "upstreams"))


def light_agents(home: Path, project: Path) -> dict[str, bool]:
    """Return by agent that is set up whether its tool calls shall run no hooks."""
    found: dict[str, bool] = {}
    for whose, asked in _table(_read_record(home), "asked").items():
        slug, _, local = whose.partition(" ")
        if local in {"", str(project)} and isinstance(asked, dict):
            # Hooks of user and project add up.
            found[slug] = found.get(slug, True) and bool(asked.get("light"))
    return found


def _planned(
    agent: Agent, place: Place, options: Options, home: Path, *, remove: bool
) -> tuple[Outcome, dict[str, Any]]:
    """Return what is to be done, and the record as it shall be."""
    record = _read_record(home)
    whose = agent.SLUG if place.scope == "global" else f"{agent.SLUG} {place.project}"
    asked = options.over(_table(_table(record, "asked"), whose))
    try:
        wish = _wish(agent, place, Options() if remove else asked, home)
        edits = [*agent.edits(wish), _tags_edit(agent, wish, {} if remove else asked.tags or {})]
    except ValueError as error:
        raise IntegrateError(f"{agent.SLUG}: {error}; nothing was changed") from error
    files = dict(_table(record, "files"))
    changes = []
    for edit in edits:
        path = edit.path.resolve()
        known = _Known(_table(files, str(path)), whose, home / "backups")
        if edit.form is None:
            change = _folder_change(path, known, remove=remove)
        else:
            change = (_unwired if remove else _wired)(edit, path, known)
        changes.append(change)
        files.pop(str(path), None)
        if change.entry is not None:
            files[str(path)] = dict(change.entry)
    all_asked = dict(_table(record, "asked"))
    all_asked.pop(whose, None)
    upstreams = dict(_table(record, "upstreams"))
    remarks = [change.kept for change in changes if change.kept is not None]
    if remove:
        upstreams.pop(agent.SLUG, None)
    else:
        all_asked[whose] = {k: v for k, v in asdict(asked).items() if v is not None}
        if (unsafe := gateway_choice.remark(wish.routes)) is not None:
            remarks.append(unsafe)
        if asked.base_url is not None and place.env.get("RESPAN_BASE_URL") != asked.base_url:
            remarks.append(
                f"traces go there too with RESPAN_BASE_URL={shlex.quote(asked.base_url)} in the "
                f"environment, or below [env] in {home / 'config.toml'}"
            )
        if gateway_choice.is_local(asked.gateway or ()):
            before = agent.upstream(place.env, place.home, place.project)
            if gateway_choice.LOCAL not in before:
                upstreams[agent.SLUG] = before
            remarks.append(
                f"requests go to {gateway_choice.LOCAL} now, and nowhere if nothing listens there: "
                "keep `tracebridge gateway` running"
            )
        else:
            upstreams.pop(agent.SLUG, None)
    fresh = {"files": files, "asked": all_asked, "upstreams": upstreams}
    return Outcome(changes=tuple(changes), remarks=tuple(remarks), wish=wish), fresh


def _wish(agent: Agent, place: Place, asked: Options, home: Path) -> Wish:
    choice = asked.gateway or ()
    key = asked.key
    if key is None and "respan" in choice:
        key = gateway_choice.RESPAN_KEY
    if key is not None:
        try:
            key = ":".join(parse_reference(key))
            check(key, place.env)
        except KeyReferenceError as error:
            raise IntegrateError(f"--api-key-env: {error}") from error
    provider = asked.route_provider
    if provider is not None and not (provider.isascii() and provider.isprintable() and provider):
        raise ValueError("--route-provider is no name of a provider")
    return Wish(
        scope=place.scope,
        home=place.home,
        project=place.project,
        env=place.env,
        commands=hook_commands(agent, home),
        routes=gateway_choice.routes(choice, asked.base_url),
        key=key,
        model=asked.model,
        headers={ROUTE_PROVIDER_HEADER: provider} if provider else {},
        traceparent=bool(asked.traceparent),
        trust_hooks=bool(asked.trust_hooks),
        light=bool(asked.light),
    )


def _tags_edit(agent: Agent, wish: Wish, tags: Mapping[str, Any]) -> Edit:
    return Edit(
        path=agent.settings_folder(wish) / TAGS_FILE,
        form=JsonText(),
        wire=lambda _: (Put((name,), value) for name, value in tags.items()),
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of a file, and where its backups lie.

    One file may be written to for several: Codex's config.toml for the user and for projects.
    """

    entry: Mapping[str, Any]
    whose: str
    backups: Path

    @property
    def written(self) -> str | None:
        return self.entry.get("written")

    @property
    def folders(self) -> tuple[Path, ...]:
        told = self.entry.get("folders")
        return tuple(Path(each) for each in told or () if isinstance(each, str))

    @property
    def puts(self) -> list[tuple[KeyPath, Any]]:
        return self._own("puts", list[tuple[KeyPath, Any]])

    @property
    def pieces(self) -> list[tuple[KeyPath, str, str]]:
        return self._own("pieces", list[tuple[KeyPath, str, str]])

    @property
    def others(self) -> dict[str, Any]:
        """Return what was written for others."""
        by = _table(self.entry, "by")
        # Whom nobody can name nobody can take out either.
        return {
            whose: each
            for whose, each in by.items()
            if whose != self.whose and whose.partition(" ")[0] in agents()
        }

    def _own(self, kind: str, shape: type[Told]) -> Told:
        own = _table(_table(self.entry, "by"), self.whose).get(kind, [])
        try:
            return msgspec.convert(own, shape)
        except msgspec.ValidationError:
            return msgspec.convert([], shape)

    def original(self) -> tuple[bytes | None] | None:
        """Return the bytes before we came, (None,) if there was no file, None if nobody knows."""
        if "original" not in self.entry:
            return None
        if self.entry["original"] is None:
            return (None,)
        try:
            return ((self.backups / str(self.entry["original"])).read_bytes(),)
        except (OSError, ValueError):
            return None

    def settings(self, edit: Edit) -> dict[str, Any]:
        """Return what the file said before we came, as far as anybody knows."""
        found = self.original()
        if found is None or found[0] is None or edit.form is None:
            return {}
        with contextlib.suppress(ValueError):
            return edit.form.parse(found[0].decode().removeprefix(BOM))
        return {}


def _folder_change(path: Path, known: _Known, *, remove: bool) -> FileChange:
    there = b"" if path.is_dir() else None
    if not remove:
        entry = {"folder": True} if there is None or known.entry else None
        return FileChange(path, there, b"", is_folder=True, entry=entry)
    ours = bool(known.entry) and there is not None and not any(path.iterdir())
    return FileChange(path, there, None if ours else there, is_folder=True)


def _wired(edit: Edit, path: Path, known: _Known) -> FileChange:
    before, text, settings = _read(path, edit)
    original = known.settings(edit)
    form = _form_of(edit)
    try:
        # What is wanted depends on what the user wrote, not on what we did.
        wanted = list(edit.wire(changed(settings, _undone(known, settings, original))))
        undo = _undone(known, settings, original, but=wanted)
        after = edited(text, form, [*undo, *wanted])
        unwired = changed(settings, edit.unwire(settings))
        clean = not (known.others or unwired != settings or _undone(known, settings, original))
    except ValueError as error:
        raise IntegrateError(f"{path}: {error}; correct it, nothing was changed") from error
    data = before if after == text and before is not None else after.encode()
    if not wanted:
        found = known.original()
        if known.written == _digest(before) and found is not None and not known.others:
            return FileChange(path, before, found[0], folders=known.folders)
        if after == text:
            return FileChange(path, before, before, entry=_left(known, before, before))
    puts_before = [place for place, _ in known.puts]
    own = {
        "puts": [
            [list(change.path), change.value]
            for change in wanted
            # What stood there already is not ours; what stands in a list is told by its look.
            if isinstance(change, Put)
            and not any(isinstance(key, int) for key in change.path)
            and (value_at(settings, change.path) != change.value or change.path in puts_before)
        ],
        "pieces": [
            [list(change.path), change.piece, change.separator]
            for change in wanted
            if isinstance(change, Include)
        ],
    }
    entry: dict[str, Any] = {"by": {**known.others, known.whose: own}, "written": _digest(data)}
    if clean:
        entry["original"] = None if before is None else _backup_name(path, before)
        entry["folders"] = [str(folder) for folder in _missing_folders(path)]
    else:
        # The very first original stays; after an edit in between it is not what to put back.
        entry |= {
            name: known.entry[name] for name in ("original", "folders") if name in known.entry
        }
        if known.written != _digest(before):
            entry["written"] = None
    return FileChange(path, before, data, entry=entry)


def _left(known: _Known, before: bytes | None, after: bytes | None) -> dict[str, Any] | None:
    """Return what there is to remember for others once nothing is written for us any more."""
    if not known.others:
        return None
    written = _digest(after) if known.written == _digest(before) else None
    return {**known.entry, "by": known.others, "written": written}


def _unwired(edit: Edit, path: Path, known: _Known) -> FileChange:
    before, text, settings = _read(path, edit)
    if before is None:
        return FileChange(path, None, None)
    found = known.original()
    if known.written == _digest(before) and found is not None and not known.others:
        return FileChange(path, before, found[0], folders=known.folders)
    if edit.whole:
        kept = f"{path}: others wrote to it; it is left as it is" if known.entry else None
        return FileChange(path, before, before, kept=kept)
    original = known.settings(edit)
    try:
        # What is told by its look may be theirs for whom else it was written.
        changes = [] if known.others else list(edit.unwire(settings))
        after = changed(settings, changes)
        changes += [
            change
            for change in _undone(known, settings, original)
            if not isinstance(change, Delete) or value_at(after, change.path) is not None
        ]
        changes += _tidied(settings, changes, original)
        rest = edited(text, _form_of(edit), changes)
        alone = found == (None,) and not known.others
        if alone and rest != text and not changed(settings, changes):
            return FileChange(path, before, None, folders=known.folders)
    except ValueError as error:
        raise IntegrateError(f"{path}: {error}; correct it, nothing was changed") from error
    data = before if rest == text else rest.encode()
    return FileChange(path, before, data, entry=_left(known, before, data))


def _undone(
    known: _Known,
    settings: Mapping[str, Any],
    original: Mapping[str, Any],
    but: Sequence[Change] = (),
) -> list[Change]:
    """Return what takes out the values that we put there, if they are ours still and not in *but*."""
    changes: list[Change] = []
    puts = {change.path for change in but if isinstance(change, Put)}
    included = {(change.path, change.piece) for change in but if isinstance(change, Include)}
    for place, value in known.puts:
        if place not in puts and value_at(settings, place) == value:
            was = value_at(original, place)
            changes.append(Delete(place) if was is None else Put(place, was))
    for place, piece, separator in known.pieces:
        now, was = value_at(settings, place), value_at(original, place)
        theirs = isinstance(was, str) and piece in pieces(was, separator)
        if (place, piece) in included or theirs or not isinstance(now, str):
            continue
        rest = [each for each in pieces(now, separator) if each != piece]
        if isinstance(was, str) and pieces(was, separator) == rest:
            changes.append(Put(place, was))
        elif rest != pieces(now, separator):
            changes.append(Put(place, separator.join(rest)) if rest else Delete(place))
    return changes


def _tidied(
    settings: Mapping[str, Any], changes: Sequence[Change], original: Mapping[str, Any]
) -> list[Change]:
    """Return what else taking ours out needs.

    Plain values that stood where ours stood come back; objects and lists that are empty then and
    were there for us alone go.
    """
    more: list[Change] = []
    after = changed(settings, changes)
    for change in changes:
        if not isinstance(change, Delete) or any(isinstance(key, int) for key in change.path):
            continue
        if value_at(after, change.path) is None:
            now, was = value_at(settings, change.path), value_at(original, change.path)
            more += _lost(change.path, now, was)
    after = changed(after, more)
    for change in changes:
        if not isinstance(change, Delete):
            continue
        for length in range(len(change.path) - 1, 0, -1):
            holder = change.path[:length]
            if value_at(after, holder) in ({}, []) and value_at(original, holder) is None:
                more.append(Delete(holder))
                after = changed(after, more[-1:])
    return more


def _lost(path: KeyPath, now: Any, was: Any) -> Iterator[Change]:
    if isinstance(was, dict) and was:
        for name, value in was.items():
            if isinstance(now, dict) and name in now:
                yield from _lost((*path, name), now[name], value)
    elif was is not None and not (isinstance(was, list) and was):
        yield Put(path, was)


def _form_of(edit: Edit) -> Format:
    if edit.form is None:
        raise ValueError("a folder is not a text")
    return edit.form


def _read(path: Path, edit: Edit) -> tuple[bytes | None, str, dict[str, Any]]:
    """Return a file's bytes, its text, and what it says."""
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return None, "", {}
    except OSError as error:
        raise IntegrateError(f"{path}: {error.strerror}; nothing was changed") from error
    try:
        text = before.decode()
        return before, text, _form_of(edit).parse(text.removeprefix(BOM))
    except UnicodeDecodeError as error:
        line = before.count(b"\n", 0, error.start) + 1
        raise IntegrateError(
            f"{path}: line {line}: not UTF-8; correct it, nothing was changed"
        ) from error
    except ValueError as error:
        raise IntegrateError(f"{path}: {error}; correct it, nothing was changed") from error


def _missing_folders(path: Path) -> list[Path]:
    return [folder for folder in path.parents if not folder.exists()]


def _carry_out(
    changes: Sequence[FileChange], record: Mapping[str, Any], home: Path, *, remove: bool
) -> dict[Path, Path]:
    """Write what is to be written; return by path where files as they were are kept."""
    work = [change for change in changes if change.changes]
    for change in work:
        _check(change)
    backups = {
        change.path: _back_up(home, change.path, change.before)
        for change in work
        if change.before is not None and not change.is_folder
    }
    # Whatever breaks in between: a record of what is not there does no harm.
    if not remove:
        _write_record(home, record)
    done: list[Path] = []
    try:
        for change in work:
            _make(change)
            done.append(change.path)
    except OSError as error:
        so_far = f"; changed before: {', '.join(map(str, done))}" if done else ""
        raise IntegrateError(
            f"{change.path}: not changed: {error.filename or change.path}: {error.strerror}{so_far}"
        ) from error
    if remove:
        _write_record(home, record)
    return backups


def _check(change: FileChange) -> None:
    """Raise IntegrateError if a file must not be written to, or is not what the plan was made for."""
    if change.is_folder:
        return
    now = change.path.read_bytes() if change.path.exists() else None
    if now != change.before:
        raise _ChangedMeanwhileError(f"{change.path}: somebody else changes it; run this again")
    if now is not None and not change.path.stat().st_mode & 0o200:
        raise IntegrateError(
            f"{change.path}: it is read-only; run `chmod u+w {shlex.quote(str(change.path))}` "
            "if tracebridge may change it; nothing was changed"
        )


def _make(change: FileChange) -> None:
    if change.is_folder:
        if change.after is None:
            change.path.rmdir()
        else:
            change.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif change.after is None:
        change.path.unlink()
        for folder in change.folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
    else:
        _write(change.path, change.after)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Keep other runs of us out: each would forget what the other one recorded."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home / f"{RECORD}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _backup_name(path: Path, data: bytes) -> str:
    return f"{path.name}.{_digest(data)[:16]}"


def _back_up(home: Path, path: Path, data: bytes) -> Path:
    folder = home / "backups"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    backup = folder / _backup_name(path, data)
    if not backup.exists():
        _write(backup, data)
    return backup


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, keeping mode and owner of the one that is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    there = path.stat() if path.exists() else None
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(there.st_mode & 0o777 if there is not None else 0o600)
        if there is not None and (there.st_uid, there.st_gid) != (os.getuid(), os.getgid()):
            # As root in somebody's home: it stays his.
            with contextlib.suppress(OSError):
                os.chown(name, there.st_uid, there.st_gid)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _table(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = record.get(name)
    return table if isinstance(table, dict) else {}


def _read_record(home: Path) -> dict[str, Any]:
    try:
        record = orjson.loads((home / RECORD).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        # Without it --remove still takes out what is ours by its look.
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(home: Path, record: Mapping[str, Any]) -> None:
    _write(home / RECORD, orjson.dumps(record, option=orjson.OPT_INDENT_2))


def _digest(data: bytes | None) -> str:
    return "absent" if data is None else hashlib.sha256(data).hexdigest()
