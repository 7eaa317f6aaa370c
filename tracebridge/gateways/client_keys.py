"""The named keys of the gateway's clients, as a file in the home keeps them: digests, no key.

    [keys.alice]
    sha256 = "..."
    created = 2026-11-21
    usd_per_day = 20.0

`tracebridge gateway-key` writes it; whoever edits it by hand is heard too, by running gateways as
well. Where there is no such file the gateway asks nobody for a key; an empty one lets nobody in.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

FILE = "gateway-keys.toml"
# Tells people, and scanners for leaked secrets, what they have found.
PREFIX = "tbk_"
_LONGEST_NAME = 100
_LARGEST_FILE = 4 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = frozenset({"sha256", "created", "usd_per_day"})


class ClientKeysError(ValueError):
    """A file of keys that cannot be used, or a change that cannot be made; with the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    name: str
    digest: bytes
    created: date | None = None
    # What calls with it may cost on one day (UTC); None: whatever they cost.
    usd_per_day: float | None = None


def digest_of(key: str) -> bytes:
    # Long and random: nothing that a slow hash would make harder to guess.
    return hashlib.sha256(key.encode()).digest()


def parse_keys(data: bytes, path: Path) -> tuple[ClientKey, ...]:
    """Return the keys that a file holds. Raise ClientKeysError where it cannot be used."""
    try:
        document = tomllib.loads(data.decode("utf-8"))
    # Python's own limit on the digits of a number is a ValueError too.
    except (ValueError, RecursionError) as error:
        raise ClientKeysError(f"{path}: {error}; correct it") from error
    tables = document.get("keys", {})
    if not isinstance(tables, dict) or document.keys() - {"keys"}:
        raise ClientKeysError(f"{path}: only tables [keys.NAME] belong here; take the rest out")
    return tuple(_parse_key(name, table, path) for name, table in tables.items())


def _parse_key(name: str, table: object, path: Path) -> ClientKey:
    where = f"{path}: keys.{name[:_LONGEST_NAME]!r}"
    if not is_name(name):
        raise ClientKeysError(f"{where}: a name has 1 to {_LONGEST_NAME} printable characters")
    if not isinstance(table, dict) or table.keys() - _FIELDS:
        raise ClientKeysError(f"{where}: it is a table of {', '.join(sorted(_FIELDS))}")
    digest, limit, created = table.get("sha256"), table.get("usd_per_day"), table.get("created")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ClientKeysError(f"{where}: sha256 is the key's digest, 64 digits of 0-9 and a-f")
    if limit is not None and not _is_limit(limit):
        raise ClientKeysError(f"{where}: usd_per_day is a number that is not negative")
    if created is not None and not isinstance(created, date):
        raise ClientKeysError(f"{where}: created is a date; write it as 2026-11-21")
    return ClientKey(
        name=name,
        digest=bytes.fromhex(digest),
        created=created,
        usd_per_day=None if limit is None else float(limit),
    )


def is_name(name: str) -> bool:
    return 0 < len(name) <= _LONGEST_NAME and name.isprintable() and name == name.strip()


def _is_limit(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


def read_keys(path: Path) -> tuple[ClientKey, ...] | None:
    """Return the keys in *path*, None where there is no file. Raise ClientKeysError as above."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o022:
                raise ClientKeysError(f"{path}: others can write to it; run: chmod 600 {path}")
            data = file.read(_LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        # Our home may be anything; the gateway goes on.
        return None
    except OSError as error:
        raise ClientKeysError(f"{path}: {error.strerror}; make it readable") from error
    if len(data) > _LARGEST_FILE:
        raise ClientKeysError(f"{path}: too long for a file of keys")
    return parse_keys(data, path)


def add_key(path: Path, name: str, usd_per_day: float | None) -> str:
    """Make a key for *name*, keep its digest and return it: nobody can show it a second time."""
    import tomlkit  # noqa: PLC0415  # the gateway needs none

    if not is_name(name):
        raise ClientKeysError(f"a name has 1 to {_LONGEST_NAME} printable characters")
    key = PREFIX + secrets.token_urlsafe(32)
    table = tomlkit.table()
    table.add("sha256", digest_of(key).hex())
    table.add("created", datetime.now(UTC).date())
    if usd_per_day is not None:
        table.add("usd_per_day", usd_per_day)
    with _changing(path) as document:
        tables = document.setdefault("keys", tomlkit.table(is_super_table=True))
        if name in tables:
            raise ClientKeysError(
                f"{name} has a key; `tracebridge gateway-key revoke` takes it away"
            )
        tables[name] = table
    return key


def revoke_key(path: Path, name: str) -> None:
    """Take the key of *name* away; gateways that run know within a second."""
    with _changing(path) as document:
        if name not in document.get("keys", {}):
            raise ClientKeysError(f"{name} has no key; `tracebridge gateway-key list` shows all")
        del document["keys"][name]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[dict]:  # type: ignore[type-arg]
    """Give the file's document to change, alone, comments and all; keep it if nothing is raised."""
    import tomlkit  # noqa: PLC0415  # as above

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A file that a gateway would refuse is not changed either.
        known = read_keys(path)
        document = tomlkit.parse("" if known is None else path.read_text("utf-8"))
        yield document
        text = tomlkit.dumps(document)
        parse_keys(text.encode(), path)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    finally:
        os.close(lock)
