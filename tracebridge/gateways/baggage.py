"""W3C baggage: one more member for the list that a request may bring along. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote

# Nobody has to pass on more than that.
_MOST_BYTES = 8192
_MOST_MEMBERS = 64


@lru_cache(maxsize=1024)
def member(name: str, value: str) -> str:
    return f"{name}={quote(value, safe='', errors='surrogatepass')}"


def has_room(sent: Sequence[str], name: str, added: str) -> bool:
    """Say whether *added* may follow the lists *sent*, which must not say *name* themselves."""
    if not sent:
        return len(added) <= _MOST_BYTES
    members = [each for line in sent for each in line.split(",") if each.strip()]
    names = {each.partition(";")[0].partition("=")[0].strip() for each in members}
    size = sum(len(line) + 1 for line in sent) + len(added)
    return name not in names and len(members) < _MOST_MEMBERS and size <= _MOST_BYTES
