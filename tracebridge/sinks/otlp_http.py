"""OTLP over HTTP, as protobuf or JSON."""

from __future__ import annotations

import gzip
import re
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import orjson
import requests
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from requests.exceptions import ConnectTimeout, ProxyError, ReadTimeout, RequestException, SSLError
from urllib3.exceptions import HTTPError

from tracebridge.encode import export_request, is_intact, package_version, to_json
from tracebridge.sinks import (
    DAMAGED,
    OutboxSpan,
    ReadySink,
    Receipt,
    by_resource,
    without_secrets,
)
from tracebridge.sinks._batch import SETTINGS_RETRY_S, Answer, BatchSender, Verdict
from tracebridge.sinks._deadline import Deadline, DeadlineAdapter, deadline
from tracebridge.sinks._otlp_settings import (
    OtlpSettings,
    WireProtocol,
    is_loopback,
    read_otlp_settings,
    read_protocol,
)
from tracebridge.sinks._wording import excerpt

_MOST_READ_OF_AN_ANSWER = 64 * 1024
_NOT_NOW = {408, 425, 429, 502, 503, 504}
_REMEDIES = {
    401: "check the key in OTEL_EXPORTER_OTLP_HEADERS (or RESPAN_API_KEY)",
    403: "check what the key in OTEL_EXPORTER_OTLP_HEADERS (or RESPAN_API_KEY) is allowed to do",
    404: "check the path of the endpoint",
    405: "check the path of the endpoint",
    407: "check the user and password of the proxy",
    415: "try OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and OTEL_EXPORTER_OTLP_COMPRESSION=none",
}


class OtlpHttpSink:
    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        self._place = without_secrets(settings.endpoint)
        self._batches = BatchSender(self._post)
        self._session = requests.Session()
        self._session.mount("http://", DeadlineAdapter())
        self._session.mount("https://", DeadlineAdapter())
        # A proxy variable must not carry away what is meant for this machine.
        self._session.trust_env = not is_loopback(settings.host)
        # Having an auth of its own keeps requests from putting one of ~/.netrc over our header.
        self._session.auth = _as_it_is
        as_json = settings.protocol is WireProtocol.HTTP_JSON
        self._session.headers.clear()
        self._session.headers.update(settings.headers)
        self._session.headers.update(
            {
                "accept-encoding": "identity",
                "content-type": "application/json" if as_json else "application/x-protobuf",
                "user-agent": f"tracebridge/{package_version()}",
            }
        )
        if settings.gzip:
            self._session.headers["content-encoding"] = "gzip"

    def send(self, spans: Sequence[OutboxSpan]) -> Receipt:
        return self._batches.send(spans)

    def close(self) -> None:
        self._session.close()

    def _post(self, spans: Sequence[OutboxSpan]) -> Answer:
        if self._settings.protocol is WireProtocol.HTTP_JSON:
            if not all(is_intact(span.data) for span in spans):
                return Answer(verdict=Verdict.REFUSED, message=DAMAGED)
            body = orjson.dumps(to_json(by_resource(spans)))
        else:
            body = export_request(by_resource(spans))
        if self._settings.gzip:
            body = gzip.compress(body, 1, mtime=0)
        time_limit = Deadline()
        try:
            with deadline(self._settings.timeout_s) as time_limit, self._exchange(body) as response:
                answer = self._judge(response, _read(response))
        except (RequestException, HTTPError, OSError) as error:
            return self._stopped(self._explain(error, overdue=time_limit.over))
        if time_limit.over:
            # What was read may be half of what was said.
            return self._stopped(self._overdue())
        return answer

    def _exchange(self, body: bytes) -> requests.Response:
        cert: str | tuple[str, str] | None = None
        if self._settings.client_certificate:
            cert = str(self._settings.client_certificate)
            if self._settings.client_key:
                cert = (cert, str(self._settings.client_key))
        return self._session.post(
            self._settings.endpoint,
            data=body,
            timeout=self._settings.timeout_s,
            allow_redirects=False,
            stream=True,
            verify=str(self._settings.certificate) if self._settings.certificate else True,
            cert=cert,
        )

    def _judge(self, response: requests.Response, body: bytes) -> Answer:
        status = response.status_code
        said = self._excerpt(body)
        message = f"{self._place}: HTTP {status} {_phrase(status)}{said and ': ' + said}"
        if 200 <= status < 300:
            if body.lstrip()[:1] == b"<":
                return _later(f"{message}; a web page lives there, check the endpoint")
            return self._judge_success(body)
        if status in _NOT_NOW or status > 505:
            retry_after_s = parse_retry_after(response.headers.get("retry-after"), time.time())
            return Answer(verdict=Verdict.LATER, message=message, retry_after_s=retry_after_s)
        if status == 413:
            return Answer(verdict=Verdict.TOO_LARGE, message=message)
        if status in (400, 422):
            if self._settings.gzip:
                message += "; if it takes no gzip, set OTEL_EXPORTER_OTLP_COMPRESSION=none"
            return Answer(verdict=Verdict.SUSPECT, message=message, retry_after_s=SETTINGS_RETRY_S)
        if status == 500:
            return Answer(verdict=Verdict.FAILED, message=message)
        if 300 <= status < 400:
            to = self._excerpt(without_secrets(response.headers.get("location", "")).encode())
            return _later(f"{message}; it redirects to {to or 'nowhere'}, set that endpoint")
        remedy = _REMEDIES.get(status)
        return _later(f"{message}; {remedy}" if remedy else message)

    def _judge_success(self, body: bytes) -> Answer:
        rejected, said = parse_partial_success(body)
        if rejected > 0:
            reason = self._excerpt(said.encode("utf-8", "replace")) or "no reason given"
            message = f"{self._place}: refused by the backend: {reason}"
            return Answer(verdict=Verdict.REFUSED, message=message, refused=rejected)
        return Answer(verdict=Verdict.TAKEN)

    def _stopped(self, why: str) -> Answer:
        return Answer(verdict=Verdict.LATER, message=f"{self._place}: {why}")

    def _overdue(self) -> str:
        return (
            f"no answer within {self._settings.timeout_s:g} s "
            "(OTEL_EXPORTER_OTLP_TIMEOUT, in milliseconds)"
        )

    def _excerpt(self, text: bytes) -> str:
        return excerpt(text, self._settings.headers.values())

    def _explain(self, error: Exception, *, overdue: bool) -> str:
        # The texts of these exceptions repeat addresses, and with them passwords of proxies.
        causes = list(_causes(error))
        if any(isinstance(cause, SSLError | ssl.SSLError) for cause in causes) and not overdue:
            why = next((c.verify_message for c in causes if isinstance(c, _CertificateError)), "")
            return (
                f"no TLS connection{why and ': ' + why}; check the endpoint's certificate and "
                "OTEL_EXPORTER_OTLP_CERTIFICATE"
            )
        if overdue or any(isinstance(cause, ConnectTimeout | ReadTimeout) for cause in causes):
            return self._overdue()
        why = next((c.strerror for c in causes if isinstance(c, OSError) and c.strerror), "")
        if any(isinstance(cause, ProxyError) for cause in causes):
            return f"the proxy does not let us through{why and ': ' + why}; check HTTPS_PROXY"
        return f"no connection: {why or 'it was closed before an answer came'}"


_CertificateError = ssl.SSLCertVerificationError


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    protocol = read_protocol(env)
    if protocol is WireProtocol.GRPC:
        # The variable speaks of another sink; this one was asked for by name.
        protocol = WireProtocol.HTTP_PROTOBUF
    settings = read_otlp_settings(env, endpoint=argument, protocol=protocol)
    return ReadySink(
        name=name,
        target=without_secrets(settings.endpoint),
        open=lambda: OtlpHttpSink(settings),
    )


def parse_retry_after(text: str | None, now_s: float) -> float | None:
    """Return the seconds that a Retry-After header asks for, None if it does not make sense."""
    text = (text or "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - now_s, 0.0)
    except (ValueError, OverflowError, IndexError):
        return None


def parse_partial_success(body: bytes) -> tuple[int, str]:
    """Return how many spans an answer rejects and why, from protobuf or JSON.

    Whichever of the two was sent: there are backends that answer in the other.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            partial = ExportTraceServiceResponse.FromString(body).partial_success
        except DecodeError:
            # Said with a success status, so it is one, in words of the backend's own.
            return 0, ""
        return partial.rejected_spans, partial.error_message
    if not isinstance(document, dict):
        return 0, ""
    said = document.get("partialSuccess") or document.get("partial_success")
    if not isinstance(said, dict):
        return 0, ""
    rejected = str(said.get("rejectedSpans") or said.get("rejected_spans") or 0)
    reason = said.get("errorMessage") or said.get("error_message") or ""
    is_count = re.fullmatch(r"[0-9]{1,18}", rejected)
    return int(rejected) if is_count else 0, str(reason)


def _read(response: requests.Response) -> bytes:
    body = b""
    while len(body) < _MOST_READ_OF_AN_ANSWER:
        more = response.raw.read1(_MOST_READ_OF_AN_ANSWER - len(body))
        if not more:
            break
        body += more
    return body


def _later(message: str) -> Answer:
    """Return that only the settings, here or there, can mend it."""
    return Answer(verdict=Verdict.LATER, message=message, retry_after_s=SETTINGS_RETRY_S)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "(no known status)"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and what it wraps; requests and urllib3 keep causes in attributes and args."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
