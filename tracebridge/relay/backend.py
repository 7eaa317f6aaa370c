"""The one place where a relay sends: requests go there, and what the sender shall hear comes back.

Nothing is retried here. Who sends to the relay has a queue, and is asked to keep what the backend
has not acknowledged.
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
import time
from dataclasses import dataclass

import aiohttp

from tracebridge.encode import package_version
from tracebridge.sinks import without_secrets
from tracebridge.sinks._otlp_settings import OtlpSettings, is_loopback
from tracebridge.sinks._wording import excerpt
from tracebridge.sinks.otlp_http import parse_partial_success, parse_retry_after

_MOST_READ_OF_AN_ANSWER = 64 * 1024
# For a backend that does not say how long it wants to be left alone.
RETRY_SECONDS = 5.0
_LONGEST_RETRY_SECONDS = 600.0
# What the sender can mend, by sending less or something else; all else is between us and the
# backend, or passes.
_SENDERS_FAULT = {400, 413, 422}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a request; with status 200, of its *rejected* spans the message says why."""

    status: int = 200
    message: str = ""
    rejected: int = 0
    retry_after_s: float | None = None

    @property
    def is_taken(self) -> bool:
        return self.status == 200


def later(message: str, retry_after_s: float | None = None) -> Answer:
    """Return that the sender shall keep what it has and come again."""
    seconds = RETRY_SECONDS if retry_after_s is None else retry_after_s
    return Answer(
        status=503, message=message, retry_after_s=min(max(seconds, 1.0), _LONGEST_RETRY_SECONDS)
    )


class Backend:
    """Use it within a running loop."""

    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        self._place = without_secrets(settings.endpoint)
        # Some refuse everything where a header is missing: that must not cost the sender's spans.
        self._has_taken_something = False
        headers = {
            **settings.headers,
            "content-type": "application/x-protobuf",
            "user-agent": f"tracebridge/{package_version()}",
        }
        if settings.gzip:
            headers["content-encoding"] = "gzip"
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s),
            # A proxy variable must not carry away what is meant for this machine.
            trust_env=not is_loopback(settings.host),
            connector=aiohttp.TCPConnector(ssl=_tls(settings), limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def send(self, request: bytes) -> Answer:
        if self._settings.gzip:
            request = await asyncio.to_thread(gzip.compress, request, 1, mtime=0)
        try:
            async with self._session.post(
                self._settings.endpoint, data=request, allow_redirects=False
            ) as response:
                said = await response.content.read(_MOST_READ_OF_AN_ANSWER)
                return self._judge(response, said)
        except TimeoutError:
            seconds = self._settings.timeout_s
            return later(f"{self._place}: no answer within {seconds:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Its text may repeat addresses, and with them passwords of proxies.
            why = getattr(error, "strerror", None) or type(error).__name__
            return later(f"{self._place}: no connection: {why}")

    async def close(self) -> None:
        await self._session.close()

    def _judge(self, response: aiohttp.ClientResponse, said: bytes) -> Answer:
        status = response.status
        if 200 <= status < 300 and said.lstrip()[:1] != b"<":
            self._has_taken_something = True
            rejected, reason = parse_partial_success(said)
            return Answer(rejected=max(rejected, 0), message=self._excerpt(reason.encode()))
        message = f"{self._place}: HTTP {status}: {self._excerpt(said)}"
        if status == 413 or (status in _SENDERS_FAULT and self._has_taken_something):
            return Answer(status=status, message=message)
        retry_after = parse_retry_after(response.headers.get("retry-after"), time.time())
        return later(message, retry_after)

    def _excerpt(self, text: bytes) -> str:
        return excerpt(text, self._settings.headers.values())


def _tls(settings: OtlpSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=None if settings.certificate is None else str(settings.certificate)
    )
    if settings.client_certificate is not None:
        context.load_cert_chain(settings.client_certificate, settings.client_key)
    return context
