"""A trace export request as bytes: cut into groups of spans, and put together again. Pure.

Of OTLP's messages only what holds spans and attributes is declared here; all else is an unknown field
to protobuf, which keeps it as it came, whatever a newer OTLP puts there. Cutting is done in C, so what
passes unchanged costs no more than a copy. Where bytes do not follow the wire format, WireError
says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_PACKAGE = "tracebridge.relay"
# By message, the names of its fields, their numbers, and of what they are. Repeated are all of them:
# so of what stands twice where it should not nothing is lost.
_MESSAGES = {
    "Request": (("resources", 1, "Resource"),),
    "Resource": (("resource", 1, "bytes"), ("scopes", 2, "Scope")),
    "Scope": (("scope", 1, "bytes"), ("spans", 2, "bytes")),
    "ScopeName": (("names", 1, "bytes"),),
    "Attributes": (("attributes", 9, "bytes"),),
}
_TRACE_ID_KEY, _SPAN_ID_KEY, _IDS_LENGTH = b"\x0a\x10", b"\x12\x08", 28


class WireError(ValueError):
    """Bytes that are no export request."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Encoded spans of one scope."""

    # The fields beside the spans.
    rest: bytes
    spans: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Resource:
    # The fields beside the scopes.
    rest: bytes
    scopes: Sequence[Scope]


def _classes() -> Mapping[str, Any]:
    file = FileDescriptorProto(name="tracebridge/relay/wire", package=_PACKAGE, syntax="proto3")
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, number, kind in fields:
            field = declared.field.add(
                name=name, number=number, label=FieldDescriptorProto.LABEL_REPEATED
            )
            if kind == "bytes":
                field.type = FieldDescriptorProto.TYPE_BYTES
            else:
                field.type = FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
    # One of its own: nobody else is to meet these names.
    pool = DescriptorPool()
    pool.Add(file)
    return {
        name: GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()
_Request, _Scope, _ScopeName, _Attributes = (
    _CLASSES[name] for name in ("Request", "Scope", "ScopeName", "Attributes")
)


def split(request: bytes) -> list[Resource]:
    """Return what an ExportTraceServiceRequest holds. Raise WireError."""
    found = []
    for group in _parsed(_Request, request).resources:
        scopes = []
        for part in group.scopes:
            spans = list(part.spans)
            part.ClearField("spans")
            scopes.append(Scope(part.SerializeToString(), spans))
        group.ClearField("scopes")
        found.append(Resource(group.SerializeToString(), scopes))
    return found


def join(resources: Iterable[Resource]) -> bytes:
    """Return an ExportTraceServiceRequest, without what has no spans."""
    message = _Request()
    for resource in resources:
        scopes = [scope for scope in resource.scopes if scope.spans]
        if scopes:
            group = message.resources.add()
            group.MergeFromString(resource.rest)
            for scope in scopes:
                part = group.scopes.add()
                part.MergeFromString(scope.rest)
                part.spans.extend(scope.spans)
    encoded: bytes = message.SerializeToString()
    return encoded


@lru_cache(maxsize=1024)
def name_of(scope_rest: bytes) -> bytes:
    """Return the name of a scope, by the fields beside its spans. Raise WireError."""
    names = [
        name
        for scope in _parsed(_Scope, scope_rest).scope
        for name in _parsed(_ScopeName, scope).names
    ]
    return names[-1] if names else b""


def ids_of(span: bytes) -> tuple[bytes, bytes]:
    """Return trace id and span id. Raise WireError where they are not of their lengths."""
    # As a span begins wherever it was encoded in the order of its fields.
    if span[:2] == _TRACE_ID_KEY and span[18:20] == _SPAN_ID_KEY and len(span) >= _IDS_LENGTH:
        return span[2:18], span[20:_IDS_LENGTH]
    message = _parsed(Span, span)
    if len(message.trace_id) != 16 or len(message.span_id) != 8:
        raise WireError("a span has no trace id of 16 bytes and span id of 8")
    return message.trace_id, message.span_id


def cut(span: bytes) -> tuple[list[bytes], bytes]:
    """Return the encoded attributes of a span, and its other fields. Raise WireError."""
    message = _parsed(_Attributes, span)
    attributes = list(message.attributes)
    message.ClearField("attributes")
    return attributes, message.SerializeToString()


def as_field(attribute: bytes) -> bytes:
    """Return an encoded attribute as a field of a span."""
    encoded: bytes = _Attributes(attributes=[attribute]).SerializeToString()
    return encoded


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise WireError(str(error)) from error
