"""Who asks for a WebSocket gets one, but for an agent, whose calls could not be told apart in it."""

from __future__ import annotations

import json

CODEX = json.dumps({"session_id": "s", "thread_id": "s", "turn_id": "", "thread_source": "user"})
UPGRADE = b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"


def ask(client, path: bytes, *fields: bytes) -> None:
    client.send(b"GET " + path + b" HTTP/1.1\r\n" + UPGRADE, *fields, b"\r\n")


def test_an_agent_is_sent_back_to_http(gateway):
    """Codex is told so by a 426, before anything goes upstream."""
    client = gateway.connect()
    ask(client, b"/api/responses", b"x-codex-turn-metadata: " + CODEX.encode() + b"\r\n")
    assert client.read_head().startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert json.loads(client.read_to_end())["error"]["code"] == 426


def test_everybody_else_gets_the_tunnel(gateway, upstream):
    """A script that speaks the same API over a WebSocket knows no way back."""
    client = gateway.connect()
    ask(client, b"/api/responses")
    peer = upstream.accept()
    assert b"Upgrade: websocket" in peer.read_head()
    peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n")
    peer.send(b"Upgrade: websocket\r\n\r\n\x81\x02hi")
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert client.read(4) == b"\x81\x02hi"
    client.send(b"\x81\x00")
    assert peer.read(2) == b"\x81\x00"
