"""What our gateway adds to a request: its place in the trace, and what the user wants of it.

Only where a model is asked. A client's own words stay: its traceparent, its baggage, its parameters.
The parent that is named is the subagent's span or the turn's. The span of the call itself would be
the better one, but its id comes from the response, so that whoever tells of the call names it alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tracebridge import ids
from tracebridge.dialects import find_dialect, model_in_path
from tracebridge.gateways import baggage
from tracebridge.gateways.aliases import HeldRequest, Renamed, rename_in_target
from tracebridge.gateways.framing import RequestHead
from tracebridge.gateways.recorder import Complaints, identify
from tracebridge.gateways.request_settings import RequestSettings, Sender, Wanted, wanted_for
from tracebridge.gateways.respan_params import HEADER, LEGACY_HEADER, NotMergedError, merged
from tracebridge.gateways.upstream import Route
from tracebridge.model import CallIdentity, Tags

# What Respan takes as a customer, and what nobody has as a session id.
_LONGEST_NAME = 254
_RESPAN_HOST = re.compile(r"(?:.+\.)?(?:respan\.ai|keywordsai\.co)", re.IGNORECASE)
_RESPAN_PATH = re.compile(
    r"/+api/+(?:(?:anthropic|google/+gemini|google/+vertexai)/"
    r"|(?:chat/+completions|responses|embeddings)/*(?:\?|$))"
)
_UNCOMPRESSED = frozenset({"", "identity"})
_NOTHING_WANTED = Wanted()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it goes on."""

    head: RequestHead
    target: str
    # Of these, one may stand in the body; none where nothing is to be looked for.
    aliases: dict[str, str] = field(default_factory=dict)
    # What stood in the target.
    renamed: Renamed | None = None
    # What the upstream could repeat and must not be kept.
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def encode(self, head: RequestHead, host: str) -> bytes:
        return head.encode(self.target, host)

    def held(self, host: str) -> HeldRequest | None:
        """Return what holds the request back until its model is known, None where nothing must."""
        if not self.aliases:
            return None
        return HeldRequest(self.head, self.aliases, lambda head: self.encode(head, host))


@dataclass(slots=True, kw_only=True)
class Outward:
    """What is added, to whose requests."""

    complaints: Complaints
    send_context: bool = True
    # Whoever changes them puts new ones in their place.
    settings: tuple[RequestSettings, ...] = ()
    # Of the one command that the gateway was started for: the user's tags, and its folder.
    tags: Tags | None = None
    project: Path | None = None

    def prepare(self, head: RequestHead, target: str, route: Route, client: str | None) -> Outgoing:
        """Return what goes to *route* in the place of *head* and *target*.

        *client*: the name of the key that the request came with. A fault costs what is added, not
        the call.
        """
        try:
            return self._prepare(head, target, route, client)
        except Exception as error:  # noqa: BLE001
            self.complaints.add(f"nothing added to requests ({type(error).__name__})", error)
            return Outgoing(head, target)

    def _prepare(
        self, head: RequestHead, target: str, route: Route, client: str | None
    ) -> Outgoing:
        path = head.path
        found = find_dialect(head.method, path)
        if found is None:
            return Outgoing(head, target)
        identity = identify(head.fields, {}, self.complaints)
        if identity is not None and len(identity.session_id or "") > _LONGEST_NAME:
            identity = None
        wanted = self._wanted(path, route, identity, client)
        lines = list(head.lines)
        if self.send_context and identity is not None:
            self._add_context(lines, head, identity)
        secrets: tuple[str, ...] = ()
        if _is_respans(route):
            self._add_params(lines, head, self._params(identity, client, wanted))
            if wanted.route_provider and "x-respan-route-provider" not in head.fields:
                lines.append(_line("X-Respan-Route-Provider", wanted.route_provider))
            secrets = tuple(wanted.secrets)
        head = replace(head, lines=lines)
        if not wanted.aliases:
            return Outgoing(head, target, secrets=secrets)
        named = model_in_path(found[0], path)
        if named is not None:
            target, renamed = rename_in_target(target, named, wanted.aliases)
            return Outgoing(head, target, renamed=renamed, secrets=secrets)
        aliases = dict(wanted.aliases) if self._can_be_held(head) else {}
        return Outgoing(head, target, aliases, secrets=secrets)

    def _wanted(
        self, path: str, route: Route, identity: CallIdentity | None, client: str | None
    ) -> Wanted:
        if not self.settings:
            return _NOTHING_WANTED
        sender = Sender(
            agent=identity.agent if identity is not None else None,
            family=route.family,
            path=path,
            client=client,
            project=self.project,
        )
        return wanted_for(self.settings, sender)

    def _add_context(self, lines: list[bytes], head: RequestHead, identity: CallIdentity) -> None:
        context = self._context(identity)
        if context is not None and "traceparent" not in head.fields:
            lines.append(_line("traceparent", "00-{}-{}-01".format(*context)))
        if identity.session_id is None:
            return
        member = baggage.member("session.id", identity.session_id)
        sent = _values(head, "baggage")
        if not baggage.has_room(sent, "session.id", member):
            return
        if any(value.strip() for value in sent):
            # In the same line: many read the first one alone.
            _change(lines, b"baggage", lambda line: line + b"," + member.encode())
        else:
            lines.append(_line("baggage", member))

    def _context(self, identity: CallIdentity) -> tuple[str, str] | None:
        """Return trace and parent of what the upstream tells of a call, None if there are none."""
        if identity.session_id is None or identity.turn_key is None or identity.is_alone:
            return None
        trace_id, parent = _ids(
            identity.agent, identity.session_id, identity.turn_key, identity.subagent_id
        )
        outer = self.tags.parent_trace_id if self.tags is not None else None
        return outer or trace_id, parent

    def _params(
        self, identity: CallIdentity | None, client: str | None, wanted: Wanted
    ) -> dict[str, Any]:
        params = dict(wanted.params)
        if not self.send_context:
            return params
        if identity is not None:
            context = self._context(identity)
            if context is not None:
                params["trace_unique_id"], params["span_parent_id"] = context
            if identity.session_id is not None:
                params["session_identifier"] = params["thread_identifier"] = identity.session_id
        # A key was checked; a tag is what somebody says.
        customer = client or (self.tags.customer_id if self.tags is not None else None)
        if customer is not None and (identity is not None or client is not None):
            if len(customer) <= _LONGEST_NAME:
                params["customer_identifier"] = customer
            else:
                self.complaints.add("customer not sent to Respan", "it is too long")
        if identity is not None and self.tags is not None and self.tags.metadata:
            params["metadata"] = dict(self.tags.metadata)
        return params

    def _add_params(self, lines: list[bytes], head: RequestHead, params: dict[str, Any]) -> None:
        if not params:
            return
        name = HEADER.lower()
        if name not in head.fields and LEGACY_HEADER.lower() in head.fields:
            name = LEGACY_HEADER.lower()
        sent = _values(head, name)
        try:
            value = self._merged(sent, params)
        except NotMergedError as error:
            self.complaints.add(f"nothing added to a client's {HEADER}", error)
            return
        if sent:
            _change(lines, name.encode(), lambda line: line.partition(b":")[0] + b": " + value)
        else:
            lines.append(HEADER.encode() + b": " + value)

    def _merged(self, sent: Sequence[str], params: dict[str, Any]) -> bytes:
        if len(sent) > 1:
            raise NotMergedError("it is there twice")
        theirs = sent[0] if sent else None
        try:
            return merged(theirs, params).encode()
        except NotMergedError as error:
            if "metadata" not in params:
                raise
            without = {name: value for name, value in params.items() if name != "metadata"}
            value = merged(theirs, without).encode()
            self.complaints.add("metadata not sent to Respan", error)
            return value

    def _can_be_held(self, head: RequestHead) -> bool:
        if head.fields.get("content-encoding", "").strip().lower() not in _UNCOMPRESSED:
            self.complaints.add("no alias looked for (compressed body)", "it passes as it is")
            return False
        if "expect" in head.fields:
            # Its client waits for the upstream's word, and the upstream would wait for the head.
            self.complaints.add("no alias looked for (100-continue)", "it passes as it is")
            return False
        return True


# A turn makes many calls. Few are kept: a client may send keys of any length.
@lru_cache(maxsize=128)
def _ids(agent: str, session_id: str, turn_key: str, subagent_id: str | None) -> tuple[str, str]:
    """Return a turn's trace, and in it the span of who makes its calls."""
    trace_id = ids.trace_id(agent, session_id, turn_key)
    if subagent_id is not None:
        return trace_id, ids.span_id(trace_id, "subagent", subagent_id)
    return trace_id, ids.root_span_id(trace_id)


@lru_cache(maxsize=16)
def _is_respans_host(host: str) -> bool:
    return _RESPAN_HOST.fullmatch(host) is not None


def _is_respans(route: Route) -> bool:
    """Say whether Respan's gateway is behind, or one with its layout as a base URL says."""
    if _is_respans_host(route.origin.host):
        return True
    return route.keeps_path and _RESPAN_PATH.match(route.target) is not None


def _values(head: RequestHead, name: str) -> list[str]:
    if name not in head.fields:
        return []
    split = [line.decode("latin-1").partition(":") for line in head.lines]
    return [value.strip(" \t") for own, _, value in split if own.lower() == name]


def _change(lines: list[bytes], name: bytes, changed: Callable[[bytes], bytes]) -> None:
    """Change the first line of that name that says something."""
    for number, line in enumerate(lines):
        own, _, value = line.partition(b":")
        if own.lower() == name and value.strip():
            lines[number] = changed(line)
            return


def _line(name: str, value: str) -> bytes:
    return f"{name}: {value}".encode("latin-1")
