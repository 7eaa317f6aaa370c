"""Many streams at once, large bodies and odd cuts: what goes in comes out, hashed at both ends."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256

import pytest

from tracebridge.model import Usage

LIMIT_S = 120
STREAMS = 100
# Of a hundred clients and servers; the rest stays to the end.
LEAVING, BREAKING = 7, 11


def events(number: int, text: str) -> bytes:
    """Return an answer of Anthropic's as a stream, with a text in pieces of some characters."""
    usage = {"input_tokens": number, "output_tokens": 1}
    message = {"id": f"msg_{number}", "type": "message", "model": "m", "usage": usage}
    told = [{"type": "message_start", "message": message}]
    told += [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text[n : n + 5]}}
        for n in range(0, len(text), 5)
    ]
    told += [
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 9},
        },
        {"type": "message_stop"},
    ]
    return b"".join(
        f"event: {each['type']}\ndata: {json.dumps(each, ensure_ascii=False)}\n\n".encode()
        for each in told
    )


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Ends:
    """Digests of what each end sent and got, by the number of the stream."""

    sent: dict[tuple[str, int], bytes] = field(default_factory=dict)
    got: dict[tuple[str, int], bytes] = field(default_factory=dict)


@asynccontextmanager
async def upstream(ends: Ends) -> AsyncIterator[str]:
    """Serve a stream of its own to each request, in pieces of any size."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            number = int(head.lower().partition(b"x-number: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(20_000 + number)
            ends.got["request", number] = sha256(body).digest()
            chance = random.Random(number)
            stream = events(number, "häß 寸🙂" * (50 + number))
            ends.sent["response", number] = sha256(stream).digest()
            writer.write(HEAD)
            breaks_off = number % BREAKING == BREAKING - 1
            for place, piece in pieces(stream, chance):
                if breaks_off and place > len(stream) // 2:
                    writer.transport.abort()
                    return
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            # Its client left.
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def pieces(data: bytes, chance: random.Random):
    place = 0
    while place < len(data):
        size = chance.choice([1, 2, 3, 7, 64, 1000])
        yield place, data[place : place + size]
        place += size


async def ask(port: int, number: int, ends: Ends) -> str:
    """Send one request and read its stream; say how it went."""
    chance = random.Random(-number)
    body = b'{"pad":"%b"}' % chance.randbytes(20_000).hex().encode()[: 20_000 + number - 10]
    ends.sent["request", number] = sha256(body).digest()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"POST /api/anthropic/v1/messages HTTP/1.1\r\nHost: localhost\r\n"
            b"X-Number: %d\r\nContent-Length: %d\r\n\r\n" % (number, len(body))
        )
        for _, piece in pieces(body, chance):
            writer.write(piece)
        await writer.drain()
        await reader.readuntil(b"\r\n\r\n")
        got = bytearray()
        while size := int(await reader.readline(), 16):
            got += await reader.readexactly(size)
            await reader.readexactly(2)
            if number % LEAVING == LEAVING - 1 and len(got) > 500:
                writer.transport.abort()
                return "left"
        ends.got["response", number] = sha256(got).digest()
    except (ConnectionError, asyncio.IncompleteReadError, ValueError):
        return "broken"
    finally:
        writer.close()
    return "whole"


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_a_hundred_streams_at_once(start_gateway, use_uvloop):
    """Clients that leave and servers that break off among them: all others get every byte."""
    ends = Ends()

    async def play() -> list[str]:
        async with upstream(ends) as url:
            gateway = start_gateway(url, use_uvloop=use_uvloop)
            asks = [ask(gateway.port, number, ends) for number in range(STREAMS)]
            outcomes = await asyncio.wait_for(asyncio.gather(*asks), LIMIT_S)
            calls = await asyncio.to_thread(gateway.wait_for_calls, STREAMS)
            assert len(calls) == STREAMS
            for call in calls:
                number = call.request_bytes - 20_000
                if outcomes[number] == "whole":
                    assert call.response_id == f"msg_{number}"
                    assert call.usage == Usage(input_tokens=number, output_tokens=9)
                    assert (call.error_type, call.partial) == (None, False)
                elif call.stop_reason is None:
                    assert call.error_type in {"client_abort", "upstream_closed", "stream_cut"}
                else:
                    # All of it had come when its client left.
                    assert (outcomes[number], call.error_type) == ("left", None)
            return outcomes

    outcomes = asyncio.run(play())
    for number, outcome in enumerate(outcomes):
        assert ends.got["request", number] == ends.sent["request", number]
        if outcome == "whole":
            assert ends.got["response", number] == ends.sent["response", number]
    expected = [
        "left"
        if number % LEAVING == LEAVING - 1
        else "broken"
        if number % BREAKING == BREAKING - 1
        else "whole"
        for number in range(STREAMS)
    ]
    assert outcomes == expected


def test_twenty_megabytes(gateway, upstream):
    """A request and an answer of 20 MB arrive as they were sent, and are recorded by their size."""
    body = random.Random(20).randbytes(20_000_000)
    head = b"Content-Length: 20000000\r\n\r\n"

    async def through(data: bytes, sender, receiver) -> bytes:
        sending = asyncio.to_thread(sender.send, data)
        receiving = asyncio.to_thread(receiver.read, len(data))
        _, got = await asyncio.gather(sending, receiving)
        return sha256(got).digest()

    client = gateway.connect()
    client.send(b"POST /api/anthropic/v1/messages HTTP/1.1\r\nHost: localhost\r\n" + head)
    peer = upstream.accept()
    peer.read_head()
    assert asyncio.run(through(body, client, peer)) == sha256(body).digest()
    answer = b"HTTP/1.1 200 OK\r\n" + head + body
    assert asyncio.run(through(answer, peer, client)) == sha256(answer).digest()
    [call] = gateway.wait_for_calls(1)
    assert (call.request_bytes, call.response_bytes) == (20_000_000, 20_000_000)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_cuts_inside_of_characters_and_events(gateway, upstream, size):
    """Chunks that end in the middle of a character, a line or an event: the same bytes and facts."""
    stream = events(4, "ä寸🙂é\u2028")
    chunks = [stream[n : n + size] for n in range(0, len(stream), size)]
    wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    client = gateway.connect()
    client.send(
        b"POST /api/anthropic/v1/messages HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.send(HEAD)
    client.read_head()
    for place in range(0, len(wire), size):
        # One at a time, so that the gateway reads it as it is cut.
        peer.send(wire[place : place + size])
        assert client.read(len(wire[place : place + size])) == wire[place : place + size]
    [call] = gateway.wait_for_calls(1)
    assert (call.response_id, call.stop_reason) == ("msg_4", "end_turn")
    assert call.usage == Usage(input_tokens=4, output_tokens=9)
    assert (call.error_type, call.partial) == (None, False)
