"""Who may send a request: the client's key out of its head, the upstream's key into it.

Agents put a key into `x-api-key`, `authorization`, `x-goog-api-key`, `api-key` or `?key=`. Where a
client's key stands, the upstream's takes its place; all else in the head stays as it is.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_plus

from msgspec.structs import replace

from tracebridge.gateways.client_keys import ClientKey, digest_of
from tracebridge.gateways.framing import RequestHead
from tracebridge.gateways.upstream import Route

_HEADERS = frozenset({b"x-api-key", b"authorization", b"x-goog-api-key", b"api-key"})
# Nobody sends more; each costs a comparison with every key there is.
_MOST_CREDENTIALS = 8
NO_KEY = (
    "a key of this gateway is needed, as API key or bearer token; "
    "`tracebridge gateway-key add NAME` makes one"
)


class NotAdmittedError(Exception):
    """A request without a key that is known."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is."""

    key: ClientKey
    # As the client sent it; it must not get any further.
    secret: str = field(repr=False)


@dataclass(slots=True)
class Access:
    """The keys in force; whoever changes them puts new ones in their place."""

    # None: nobody is asked for a key.
    keys: tuple[ClientKey, ...] | None = None
    # By family; under None for families that have none of their own.
    upstream_keys: Mapping[str | None, str] = field(default_factory=dict, repr=False)

    def caller(self, head: RequestHead) -> Caller | None:
        """Return who sent *head*, None where nobody is asked. Raise NotAdmittedError."""
        if self.keys is None:
            return None
        found = None
        for number, secret in enumerate(_credentials(head)):
            if number == _MOST_CREDENTIALS:
                break
            key = self._key_of(secret)
            if found is None and key is not None:
                found = Caller(key, secret)
        if found is None:
            raise NotAdmittedError(NO_KEY)
        return found

    def _key_of(self, secret: str) -> ClientKey | None:
        digest = digest_of(secret)
        found = None
        # All of them, each in constant time: how long it takes tells nothing.
        for key in self.keys or ():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def swapped(
        self, head: RequestHead, route: Route, caller: Caller
    ) -> tuple[RequestHead, str, str | None]:
        """Return head and target with the upstream's key in the place of the client's, and it.

        An upstream without a key of its own gets none.
        """
        own = self.upstream_keys.get(route.family, self.upstream_keys.get(None))
        lines = []
        for line in head.lines:
            name, _, value = line.partition(b":")
            if name.lower() in _HEADERS and _secret_in(value) == caller.secret:
                if own is None:
                    continue
                secret = caller.secret.encode("latin-1")
                start = value.rindex(secret)
                value = value[:start] + own.encode("ascii") + value[start + len(secret) :]
                lines.append(name + b":" + value)
            else:
                lines.append(line)
        path, mark, query = route.target.partition("?")
        if mark:
            pairs = [_swapped_pair(pair, caller.secret, own) for pair in query.split("&")]
            query = "&".join(pair for pair in pairs if pair is not None)
            mark = "?" if query else ""
        return replace(head, lines=lines), path + mark + query, own


def _credentials(head: RequestHead) -> Iterator[str]:
    for line in head.lines:
        name, _, value = line.partition(b":")
        if name.lower() in _HEADERS:
            yield _secret_in(value)
    for pair in head.target.partition("?")[2].split("&"):
        if pair.startswith("key="):
            yield unquote_plus(pair.removeprefix("key="))


def _secret_in(value: bytes) -> str:
    """Return what stands behind the scheme, if there is one."""
    return value.strip(b" \t").rpartition(b" ")[2].decode("latin-1")


def _swapped_pair(pair: str, secret: str, own: str | None) -> str | None:
    if not pair.startswith("key=") or unquote_plus(pair.removeprefix("key=")) != secret:
        return pair
    return None if own is None else f"key={quote(own, safe='')}"
