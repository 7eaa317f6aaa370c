"""The standard OTEL_EXPORTER_OTLP_* variables, read from a mapping.

The variable of the signal (OTEL_EXPORTER_OTLP_TRACES_*) wins over the general one, and an empty
one counts as unset, as the specification says. It also says that timeouts are milliseconds, which
is what is done here; the official Python exporters take seconds.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from tracebridge.sinks import SinkSettingsError

DEFAULT_TIMEOUT_S = 10.0
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class WireProtocol(StrEnum):
    GRPC = "grpc"
    HTTP_PROTOBUF = "http/protobuf"
    HTTP_JSON = "http/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpSettings:
    # Without user and password, which stand in the headers.
    endpoint: str
    protocol: WireProtocol
    headers: Mapping[str, str] = field(repr=False)
    timeout_s: float
    gzip: bool
    # For an endpoint of gRPC without a scheme.
    insecure: bool
    certificate: Path | None
    client_key: Path | None
    client_certificate: Path | None

    @property
    def host(self) -> str:
        return _split(self.endpoint).hostname or ""


def read_otlp_settings(
    env: Mapping[str, str], *, endpoint: str = "", protocol: WireProtocol | None = None
) -> OtlpSettings:
    """Return the settings. *endpoint* and *protocol* win over the variables.

    Raise SinkSettingsError naming the variable and the remedy.
    """
    protocol = protocol or read_protocol(env)
    url = _endpoint(env, endpoint, protocol)
    parts = _split(url)
    headers = _headers(env)
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        encoded = base64.b64encode(credentials.encode()).decode()
        headers.setdefault("authorization", f"Basic {encoded}")
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    respan_key = env.get("RESPAN_API_KEY", "").strip()
    if is_respan(parts) and respan_key:
        _check_header_value("RESPAN_API_KEY", respan_key)
        headers.setdefault("authorization", f"Bearer {respan_key}")
    client_key = _file(env, "CLIENT_KEY")
    client_certificate = _file(env, "CLIENT_CERTIFICATE")
    if client_key and not client_certificate:
        raise SinkSettingsError(
            "OTEL_EXPORTER_OTLP_CLIENT_KEY is set without OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE; "
            "set both or neither"
        )
    return OtlpSettings(
        endpoint=url,
        protocol=protocol,
        headers=headers,
        timeout_s=_timeout(env),
        gzip=_gzip(env, parts),
        insecure=_insecure(env),
        certificate=_file(env, "CERTIFICATE"),
        client_key=client_key,
        client_certificate=client_certificate,
    )


def read_protocol(env: Mapping[str, str]) -> WireProtocol:
    name, value = _variable(env, "PROTOCOL")
    try:
        return WireProtocol(value.lower() or WireProtocol.HTTP_PROTOBUF)
    except ValueError:
        raise SinkSettingsError(
            f"{name}: {value[:40]!r} is no protocol; use {', '.join(WireProtocol)}"
        ) from None


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_respan(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    return host == "respan.ai" or host.endswith(".respan.ai")


def respan_traces_url(base: str) -> str:
    """Return where Respan takes OTLP traces, by the rule of its own clients."""
    base = base.rstrip("/")
    if base.endswith("/traces"):
        return base
    return f"{base}/v2/traces" if base.endswith("/api") else f"{base}/api/v2/traces"


def check_url(variable: str, url: str, example: str) -> SplitResult:
    """Return the parts of an http(s) URL. The error does not repeat it: it may hold a password."""
    remedy = f"write it like {example}"
    try:
        parts = urlsplit(url)
        # Reading the port is what checks it.
        port_is_possible = parts.port != 0
    except ValueError:
        raise SinkSettingsError(f"{variable}: not a URL; {remedy}") from None
    if parts.scheme not in ("http", "https"):
        raise SinkSettingsError(f"{variable}: does not start with http:// or https://; {remedy}")
    if not parts.hostname or not port_is_possible or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise SinkSettingsError(f"{variable}: has no usable host and port; {remedy}")
    return parts


def _variable(env: Mapping[str, str], suffix: str) -> tuple[str, str]:
    """Return the name and value of the variable that counts; the value is "" if none is set."""
    for name in (f"OTEL_EXPORTER_OTLP_TRACES_{suffix}", f"OTEL_EXPORTER_OTLP_{suffix}"):
        value = env.get(name, "").strip()
        if value:
            return name, value
    return f"OTEL_EXPORTER_OTLP_{suffix}", ""


def _endpoint(env: Mapping[str, str], argument: str, protocol: WireProtocol) -> str:
    name, value = _variable(env, "ENDPOINT")
    if argument:
        name, value = "TRACEBRIDGE_SINKS", argument
    if protocol is WireProtocol.GRPC:
        value = value or "http://localhost:4317"
        # Only gRPC has endpoints without a scheme: a target such as collector:4317.
        if "://" in value:
            check_url(name, value, "http://localhost:4317")
        else:
            check_url(name, f"http://{value}", "http://localhost:4317")
        return value
    value = value or "http://localhost:4318"
    parts = check_url(name, value, "http://localhost:4318")
    if is_respan(parts):
        return respan_traces_url(value)
    if name == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT":
        return value
    if argument and parts.path.rstrip("/").endswith("/traces"):
        return value
    return parts._replace(path=parts.path.rstrip("/") + "/v1/traces").geturl()


def _headers(env: Mapping[str, str]) -> dict[str, str]:
    name, value = _variable(env, "HEADERS")
    headers = {}
    for number, pair in enumerate(filter(None, map(str.strip, value.split(","))), start=1):
        key, equals, encoded = pair.partition("=")
        key = unquote(key.strip()).lower()
        if not equals or not _TOKEN.fullmatch(key):
            # The value is a secret more often than not, so the place must do.
            raise SinkSettingsError(
                f"{name}: entry {number} is not of the form name=value; "
                "separate entries by commas and write a comma in a value as %2C"
            )
        header = unquote(encoded.strip())
        _check_header_value(f"{name}: the value of {key}", header)
        headers[key] = header
    return headers


def _check_header_value(place: str, value: str) -> None:
    if not value.isascii() or not value.isprintable():
        raise SinkSettingsError(
            f"{place} holds characters that no HTTP header can carry; look for line ends and "
            "letters beyond ASCII"
        )


def _timeout(env: Mapping[str, str]) -> float:
    name, value = _variable(env, "TIMEOUT")
    if not value:
        return DEFAULT_TIMEOUT_S
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) == 0:
        raise SinkSettingsError(
            f"{name}: {value[:40]!r} is no time; give whole milliseconds, such as 10000"
        )
    return int(value) / 1000


def _gzip(env: Mapping[str, str], parts: SplitResult) -> bool:
    name, value = _variable(env, "COMPRESSION")
    if value not in ("", "gzip", "none"):
        raise SinkSettingsError(f"{name}: {value[:40]!r} is not known; use gzip or none")
    if is_respan(parts):
        # Respan does not decompress what it is sent, whatever other backends were set up for.
        return False
    if value:
        return value == "gzip"
    # Worth it on a network only, and small local receivers refuse it.
    return not is_loopback(parts.hostname or "")


def _insecure(env: Mapping[str, str]) -> bool:
    name, value = _variable(env, "INSECURE")
    if value.lower() not in ("", "true", "false"):
        raise SinkSettingsError(f"{name}: {value[:40]!r} is not known; use true or false")
    return value.lower() == "true"


def _file(env: Mapping[str, str], suffix: str) -> Path | None:
    name, value = _variable(env, suffix)
    if not value:
        return None
    path = Path(value).expanduser()
    try:
        path.open("rb").close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SinkSettingsError(f"{name}: cannot read {value}: {reason}") from None
    return path


def _split(endpoint: str) -> SplitResult:
    return urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
