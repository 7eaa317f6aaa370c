"""What the sinks of known backends share: their keys, OTLP over HTTP, and their words on spans.

A key may stand in its variable, or a reference to one. That is resolved when the key is needed, and
again after each failure, so that a key which expires may be replaced.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tracebridge.keys import KINDS, KeyReferenceError, resolve
from tracebridge.sinks import (
    OutboxSpan,
    ReadySink,
    Receipt,
    Sink,
    SinkSettingsError,
    without_secrets,
)
from tracebridge.sinks import prepare as prepare_sink
from tracebridge.sinks._batch import SETTINGS_RETRY_S
from tracebridge.sinks._otlp_settings import check_url

# How the network is; all else in these variables may be meant for another backend.
_OF_THE_NETWORK = ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_CERTIFICATE")

Attributes = dict[str, str | int | float | bool]
Keys = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanWords:
    """A span as a backend may put it into its own words. Lists among the attributes stay as they are."""

    name: str
    attributes: Attributes
    start_ns: int
    # Empty unless the span failed.
    error: str


# Returns all the attributes that the backend is to get.
Translate = Callable[[SpanWords], Attributes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where one backend takes OTLP, and how."""

    url: str
    # The variables that hold its keys or name them; all must be set.
    keys: tuple[str, ...] = ()
    headers: Callable[[Keys], Mapping[str, str]] = lambda _: {}
    # None: as the network is, see OTEL_EXPORTER_OTLP_COMPRESSION.
    compression: str | None = None
    translate: Translate | None = None


def prepare_backend(name: str, env: Mapping[str, str], backend: Backend) -> ReadySink:
    """Return the sink, ready to be opened. Raise SinkSettingsError naming what is missing."""
    kind = name.partition(":")[0]
    missing = [variable for variable in backend.keys if not env.get(variable, "").strip()]
    if missing:
        raise SinkSettingsError(
            f"the sink {kind} needs {' and '.join(missing)}; set it to a key of your account, or "
            "name one with ENV:NAME, FILE:path or CMD:command"
        )
    for variable in backend.keys:
        if not env[variable].strip().startswith(("FILE:", "CMD:")):
            # Wrong keys are better known now than when a turn is sent.
            _key(variable, env[variable].strip(), env)

    def open_inner() -> Sink:
        keys = {variable: _key(variable, env[variable].strip(), env) for variable in backend.keys}
        headers = ",".join(
            f"{header}={quote(value, safe='')}" for header, value in backend.headers(keys).items()
        )
        own = {variable: env[variable] for variable in _OF_THE_NETWORK if variable in env}
        own["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = backend.url
        own["OTEL_EXPORTER_OTLP_TRACES_HEADERS"] = headers
        own["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
        if backend.compression is not None:
            own["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"] = backend.compression
        return prepare_sink("otlp_http", own, name=name).open()

    return ReadySink(
        name=name,
        target=without_secrets(backend.url),
        open=lambda: _BackendSink(open_inner, backend.translate),
    )


def base_url(argument: str, env: Mapping[str, str], names: Sequence[str], default: str) -> str:
    """Return where the backend is, without a slash at its end: the argument, else a variable."""
    found = next((name for name in names if env.get(name, "").strip()), "")
    url = argument or env.get(found, "").strip() or default
    check_url("TRACEBRIDGE_SINKS" if argument else found or names[0], url, default)
    return url.rstrip("/")


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _key(variable: str, value: str, env: Mapping[str, str]) -> str:
    """Return the key that *value* is or names. Errors name the variable and never the key."""
    if value.startswith(tuple(f"{kind}:" for kind in KINDS)):
        try:
            return resolve(value, env)
        except KeyReferenceError as error:
            raise SinkSettingsError(f"{variable}: {error}") from None
    if not value.isascii() or not value.isprintable():
        raise SinkSettingsError(f"{variable} holds characters that no key has; copy it anew")
    return value


class _BackendSink:
    def __init__(self, open_inner: Callable[[], Sink], translate: Translate | None) -> None:
        self._open = open_inner
        self._translate = translate
        self._inner: Sink | None = None

    def send(self, spans: Sequence[OutboxSpan]) -> Receipt:
        try:
            self._inner = self._inner or self._open()
        except SinkSettingsError as error:
            return Receipt(error=str(error), retry_after_s=SETTINGS_RETRY_S)
        if self._translate is not None:
            spans = [replace(span, data=translated(span.data, self._translate)) for span in spans]
        receipt = self._inner.send(spans)
        if receipt.error is not None:
            self.close()
        return receipt

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
        self._inner = None


def translated(data: bytes, translate: Translate) -> bytes:
    """Return an encoded span in the words of a backend; equal bytes give equal bytes."""
    message = SpanMessage()
    try:
        message.ParseFromString(data)
    except DecodeError:
        # The sink behind us sets aside what is damaged.
        return data
    before: Attributes = {}
    for attribute in message.attributes:
        kind = attribute.value.WhichOneof("value")
        if kind in ("string_value", "int_value", "double_value", "bool_value"):
            before[attribute.key] = getattr(attribute.value, kind)
    failed = message.status.code == message.status.STATUS_CODE_ERROR
    after = translate(
        SpanWords(
            name=message.name,
            attributes=before,
            start_ns=message.start_time_unix_nano,
            error=(message.status.message or "failed") if failed else "",
        )
    )
    kept = [a for a in message.attributes if a.key not in before or a.key in after]
    changed = [a.key for a in kept if a.key in before and before[a.key] != after[a.key]]
    kept = [a for a in kept if a.key not in changed]
    del message.attributes[:]
    message.attributes.extend(kept)
    for key in sorted({*(after.keys() - before.keys()), *changed}):
        attribute = message.attributes.add(key=key)
        value = after[key]
        # bool before int, of which it is a kind.
        if isinstance(value, bool):
            attribute.value.bool_value = value
        elif isinstance(value, str):
            attribute.value.string_value = value
        elif isinstance(value, int):
            attribute.value.int_value = value
        else:
            attribute.value.double_value = value
    return message.SerializeToString(deterministic=True)
