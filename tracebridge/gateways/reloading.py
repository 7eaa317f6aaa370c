"""What a running gateway takes up anew: keys, its certificate, what is wanted of requests.

Looked at once a second, and at once when asked (SIGHUP). Requests under way are not touched. What
cannot be used is complained of, and what was in force stays in force.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tracebridge import keys, prices
from tracebridge.gateways.access import Access
from tracebridge.gateways.client_keys import ClientKey, ClientKeysError, read_keys
from tracebridge.gateways.outward import Outward
from tracebridge.gateways.recorder import Complaints
from tracebridge.gateways.request_settings import (
    RequestSettings,
    RequestSettingsError,
    read_request_settings,
)
from tracebridge.gateways.upstream import FAMILIES

_LOOK_SECONDS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where it comes from."""

    client_keys: Path | None = None
    # By family; under None for all others.
    upstream_keys: Mapping[str | None, str] = field(default_factory=dict)
    tls_cert: Path | None = None
    # None: it stands with the certificate.
    tls_key: Path | None = None
    # What is wanted of requests.
    config: Path | None = None

    def files(self) -> Iterable[Path]:
        yield from filter(None, (self.client_keys, self.tls_cert, self.tls_key, self.config))
        for reference in self.upstream_keys.values():
            kind, rest = keys.parse_reference(reference)
            if kind == "FILE":
                yield Path(rest).expanduser()


class SourceError(ValueError):
    """Something that cannot be used; the text names it, the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class _Found:
    client_keys: tuple[ClientKey, ...] | None
    upstream_keys: Mapping[str | None, str] = field(repr=False)
    request_settings: tuple[RequestSettings, ...]


def parse_upstream_keys(words: Iterable[str]) -> dict[str | None, str]:
    """Return references by family for the words of `--upstream-key`. Raise SourceError."""
    found: dict[str | None, str] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        family, reference = (name, rest) if equals and name in FAMILIES else (None, word)
        try:
            keys.parse_reference(reference)
        except keys.KeyReferenceError as error:
            raise SourceError(f"--upstream-key: {error}") from error
        if family in found:
            raise SourceError(f"--upstream-key: {family or 'one for all'} is given twice")
        found[family] = reference
    return found


class InForce:
    """Keep *access*, *outward* and *tls* as their sources say."""

    def __init__(
        self,
        sources: Sources,
        env: Mapping[str, str],
        access: Access,
        outward: Outward,
        complaints: Complaints,
    ) -> None:
        self._sources = sources
        self._env = env
        self._access = access
        self._outward = outward
        self._complaints = complaints
        self._seen: list[object] = []
        self.tls: ssl.SSLContext | None = None
        self.asked = asyncio.Event()

    async def load(self) -> None:
        """Put everything in force. Raise SourceError where something cannot be used."""
        self._seen = self._look()
        found = await asyncio.get_running_loop().run_in_executor(None, self._read)
        if self._sources.tls_cert is not None:
            if self.tls is None:
                self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                self.tls.set_alpn_protocols(["http/1.1"])
            # Connections that are there keep the certificate that they have seen.
            self.tls.load_cert_chain(self._sources.tls_cert, self._sources.tls_key)
        if found.client_keys is not None:
            self._access.keys = found.client_keys
        elif self._access.keys is not None:
            # Whoever takes the file away does not mean to let everybody in.
            self._access.keys = ()
        self._access.upstream_keys = found.upstream_keys
        self._outward.settings = found.request_settings

    async def keep(self) -> None:
        """Load again whenever a file has changed, or somebody asks, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self.asked.wait()
            except TimeoutError:
                if self._look() == self._seen:
                    continue
            self.asked.clear()
            try:
                await self.load()
            except SourceError as error:
                self._complaints.add(f"not reloaded: {error}", "what was in force stays in force")

    def _read(self) -> _Found:
        sources = self._sources
        try:
            client_keys = None if sources.client_keys is None else read_keys(sources.client_keys)
        except ClientKeysError as error:
            raise SourceError(str(error)) from error
        if client_keys is not None:
            # Now, and not while the first call is under way.
            prices.price_list()
        try:
            request_settings = (
                () if sources.config is None else read_request_settings(sources.config, self._env)
            )
        except RequestSettingsError as error:
            raise SourceError(str(error)) from error
        upstream_keys = {}
        for family, reference in sources.upstream_keys.items():
            try:
                upstream_keys[family] = keys.resolve(reference, self._env)
            except keys.KeyReferenceError as error:
                raise SourceError(f"--upstream-key: {error}") from error
        if sources.tls_cert is not None:
            try:
                # Tried here first: half of a new pair would spoil the one in force.
                scratch = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                scratch.load_cert_chain(sources.tls_cert, sources.tls_key)
            except OSError as error:
                reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
                raise SourceError(
                    f"{sources.tls_cert}: {reason}; "
                    "give a certificate and its key, both as PEM, by --tls-cert and --tls-key"
                ) from error
        return _Found(client_keys, upstream_keys, request_settings)

    def _look(self) -> list[object]:
        """Return what changes when a file does."""
        seen: list[object] = []
        for path in self._sources.files():
            try:
                facts = path.stat()
            except OSError as error:
                seen.append(error.errno)
            else:
                seen.append((facts.st_ino, facts.st_mtime_ns, facts.st_size, facts.st_mode))
        return seen
