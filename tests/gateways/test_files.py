"""A folder of records, followed: each record once, whatever happens to the files on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from shutil import copyfile

import pytest
from beside import started
from claude_files import Claude, at
from hypothesis import given
from hypothesis import strategies as st

from tracebridge.agents import Cursor
from tracebridge.codec import encode
from tracebridge.gateways.files import MARK_BYTES, read_folder
from tracebridge.model import CallIdentity, GatewayCall, HookEvent, Usage
from tracebridge.settings import read_settings
from tracebridge.testing.receiver import Receiver
from tracebridge.views.status import status
from tracebridge.watch import watch_once

WATCH = [sys.executable, "-m", "tracebridge", "watch"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    return folder


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


def line(name: str, **known) -> bytes:
    """Return a record of a call as a line."""
    given = {"response_id": f"msg_{name}", "start_ns": at(1), "end_ns": at(2)} | known
    call = GatewayCall(call_id=name, gateway="envoy", method="POST", path="/v1/messages", **given)
    return encode(call) + b"\n"


class Follower:
    """Reads a folder look by look, as a watcher does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cursor = Cursor()
        self.names: list[str] = []
        self.notes: dict[str, int] = {}

    def look(self) -> list[str]:
        """Return the names of the records that are new."""
        new: list[str] = []
        is_partial = True
        while is_partial:
            reading = read_folder(self.folder, self.cursor)
            # As the store gives it back.
            self.cursor = Cursor(memory=json.loads(json.dumps(reading.cursor.memory)))
            new += [record.call_id for record in reading.records]
            for note, count in reading.notes.items():
                self.notes[note] = self.notes.get(note, 0) + count
            is_partial = reading.is_partial
        self.names += new
        return new


@pytest.fixture
def follower(folder: Path) -> Follower:
    return Follower(folder)


def test_a_growing_file(follower, folder):
    """What is appended comes once; a look at what did not change moves nothing."""
    file = folder / "calls.jsonl"
    file.write_bytes(line("one") + line("two"))
    assert follower.look() == ["one", "two"]
    before = follower.cursor
    assert follower.look() == []
    assert follower.cursor == before
    with file.open("ab") as stream:
        stream.write(b"\n" + line("three"))
    assert follower.look() == ["three"]


def test_a_line_that_is_still_written_waits(follower, folder):
    """Until it is whole: with its end, or without one where nothing can follow any more."""
    file = folder / "calls.jsonl"
    whole = line("one")
    file.write_bytes(whole[:40])
    assert follower.look() == []
    file.write_bytes(whole[:-1])
    assert follower.look() == ["one"]
    file.write_bytes(whole + line("two"))
    assert follower.look() == ["two"]
    assert follower.notes == {}


def test_rotation_by_renaming(follower, folder):
    """The renamed file is read to its end, and is no new one; the file in its place is."""
    file = folder / "calls.jsonl"
    file.write_bytes(line("one"))
    assert follower.look() == ["one"]
    with file.open("ab") as stream:
        stream.write(line("two"))
    file.rename(folder / "calls-2026-11-21T10-00-00.jsonl")
    file.write_bytes(line("three"))
    assert sorted(follower.look()) == ["three", "two"]
    assert follower.look() == []


def test_rotation_by_copying_and_emptying(follower, folder):
    """What was appended right before the copy is found in the copy; nothing is read twice."""
    file = folder / "calls.jsonl"
    file.write_bytes(line("one"))
    assert follower.look() == ["one"]
    with file.open("ab") as stream:
        stream.write(line("two"))
    copyfile(file, folder / "calls.jsonl.1")
    os.truncate(file, 0)
    with file.open("ab") as stream:
        stream.write(line("three") + line("four"))
    assert sorted(follower.look()) == ["four", "three", "two"]
    assert follower.look() == []


def test_an_emptied_file_that_grew_beyond_where_it_was_read(follower, folder):
    """Its size does not tell that it begins anew; what stands in it does."""
    file = folder / "calls.jsonl"
    file.write_bytes(line("one"))
    assert follower.look() == ["one"]
    file.write_bytes(line("two") + line("three"))
    assert follower.look() == ["two", "three"]


def test_a_file_that_hides_for_a_moment(follower, folder, tmp_path):
    """Moved out of the folder and back, it is read on."""
    file = folder / "calls.jsonl"
    file.write_bytes(line("one"))
    assert follower.look() == ["one"]
    file.rename(tmp_path / "elsewhere")
    assert follower.look() == []
    (tmp_path / "elsewhere").rename(file)
    with file.open("ab") as stream:
        stream.write(line("two"))
    assert follower.look() == ["two"]


@given(data=st.data())
def test_any_order_of_events(data, tmp_path_factory):
    """Appending in pieces, renaming, copying and emptying, looks in between: each record once."""
    folder = tmp_path_factory.mktemp("records")
    follower = Follower(folder)
    file = folder / "calls.jsonl"
    written: list[str] = []
    rotations = 0
    steps = ["append", "append", "append", "rename", "copy", "look"]
    for step in data.draw(st.lists(st.sampled_from(steps), max_size=25)):
        if step == "append":
            name = f"{len(written)}"
            # Shorter and longer than what marks a place.
            text = line(name, error_message="x" * data.draw(st.sampled_from([0, MARK_BYTES])))
            cut = data.draw(st.integers(0, len(text)))
            for piece in (text[:cut], text[cut:]):
                with file.open("ab") as stream:
                    stream.write(piece)
                if data.draw(st.booleans()):
                    follower.look()
            written.append(name)
        elif step == "look":
            follower.look()
        elif file.exists():
            rotations += 1
            if step == "rename":
                file.rename(folder / f"calls.{rotations}")
            else:
                copyfile(file, folder / f"calls.{rotations}")
                os.truncate(file, 0)
    follower.look()
    assert sorted(follower.names, key=int) == written
    assert follower.notes == {}


def test_a_large_file_is_taken_in_by_parts(follower, folder):
    """One look holds a bounded number of records, whatever waits."""
    (folder / "calls.jsonl").write_bytes(b"".join(line(str(n)) for n in range(5000)))
    first = read_folder(folder, Cursor())
    assert first.is_partial
    assert len(first.records) == 2000
    assert follower.look() == [str(n) for n in range(5000)]


def test_garbage_is_counted_by_file_and_line(follower, folder):
    """The first bad line of a file is named; what stands around it is read."""
    file = folder / "calls.jsonl"
    garbage = [
        b"not json",
        b'"a text"',
        b"[1]",
        b'{"unknown": 1}',
        b'{"call_id": 7}',
        b"\xff\xfe",
        b"[" * 100_000,
        line("late", start_ns=2**63).strip(),
        b'{"litellm_call_id": "x", "startTime": "now"}',
    ]
    file.write_bytes(line("one") + b"\n" + b"\n".join(garbage) + b"\n" + line("two"))
    assert follower.look() == ["one", "two"]
    assert follower.notes == {
        f"records in {file}: line 3: not JSON": 1,
        f"records in {file}: further lines not understood": len(garbage) - 1,
    }


@given(data=st.binary(max_size=400), more=st.binary(max_size=400))
def test_any_bytes(data, more, tmp_path_factory):
    """Whatever stands in a file, and comes behind it: counted, and no reason to stop."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "calls").write_bytes(data)
    follower = Follower(folder)
    assert follower.look() == []
    with (folder / "calls").open("ab") as stream:
        stream.write(more + b"\n" + line("last"))
    assert follower.look() == ["last"]
    assert sum(follower.notes.values()) <= (data + more).count(b"\n") + 1


def test_what_is_no_file_of_records(follower, folder):
    """Hidden files, folders, broken links and pipes are passed over, compressed files told of."""
    (folder / ".calls.jsonl.swp").write_bytes(line("hidden"))
    (folder / "old").mkdir()
    (folder / "link").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe")
    packed = folder / "calls.jsonl.gz"
    packed.write_bytes(b"\x1f\x8b")
    assert follower.look() == []
    assert follower.look() == []
    assert follower.notes == {f"records not read: {packed}: compressed; unpack it": 1}


def test_what_an_agent_says_of_itself_in_a_collectors_file(folder):
    """Log records in OTLP/JSON are reduced as those that are sent to us."""
    told = {"session.id": "s", "event.name": "gemini_cli.api_response", "response_text": "hush"}
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in told.items()]
    export = {
        "resourceLogs": [
            {
                "resource": {
                    "attributes": [{"key": "service.name", "value": {"stringValue": "gemini-cli"}}]
                },
                "scopeLogs": [{"logRecords": [{"timeUnixNano": "5", "attributes": attributes}]}],
            }
        ]
    }
    (folder / "otlp.json").write_text(json.dumps(export) + "\n" + '{"resourceMetrics": []}\n')
    reading = read_folder(folder, Cursor(), lambda: 7)
    (event,) = reading.records
    assert isinstance(event, HookEvent)
    assert (event.agent, event.time_ns) == ("gemini-cli", 7)
    assert b'"session.id":"s"' in event.payload
    assert b"hush" not in event.payload
    assert reading.notes == {}


def test_records_are_linked_like_calls_of_our_own_gateway(folder, home, monkeypatch, receiver):
    """A record that names what the transcript names is the gateway's view of that call."""
    monkeypatch.setenv("TRACEBRIDGE_RECORDS", str(folder))
    claude = Claude(home, folder.parent)
    claude.hook(0, "UserPromptSubmit", prompt="hi")
    claude.prompt_line(0, "hi")
    claude.answer_line(3, "msg_1", {"type": "text", "text": "hello"}, began=1)
    claude.hook(3, "Stop")
    known = CallIdentity(agent="claude-code", session_id=claude.session)
    usage = Usage(input_tokens=16, output_tokens=20)
    (folder / "calls.jsonl").write_bytes(
        line("1", identity=known, usage=usage, end_ns=at(3), error_message=None)
    )
    assert watch_once(read_settings())
    (folder / "calls.jsonl").rename(folder / "calls.jsonl.1")
    assert watch_once(read_settings())
    (chat,) = [span for span in receiver.spans if span.name.startswith("chat")]
    assert chat.attributes["tracebridge.llm.gateway"] == "envoy"
    assert chat.attributes["tracebridge.llm.source"] == "gateway+transcript"
    links = status(read_settings())["links"]
    assert links["by_gateway"] == {"envoy": {"response_id": 1}}


def test_times_in_text_and_a_status_alone(folder):
    """As Envoy's log has them: what was refused is an error, whether the record says so or not."""
    known = {"gateway": "envoy", "method": "POST", "path": "/v1/messages", "response_id": None}
    refused = {"call_id": "1", "start_ns": str(at(1)), "end_ns": str(at(2)), "status_code": 429}
    answered = {"call_id": "2", "start_ns": at(3), "end_ns": at(4), "status_code": 200}
    odd = {"call_id": "3", "start_ns": "soon", "end_ns": str(at(4))}
    lines = [json.dumps(known | call) for call in (refused, answered, odd)]
    (folder / "calls.jsonl").write_text("".join(f"{each}\n" for each in lines))
    reading = read_folder(folder, Cursor())
    first, second = reading.records
    assert isinstance(first, GatewayCall)
    assert isinstance(second, GatewayCall)
    assert (first.start_ns, first.end_ns, first.error_type) == (at(1), at(2), "429")
    assert (second.start_ns, second.error_type) == (at(3), None)
    (note,) = reading.notes
    assert "line 3: Expected `int`, got `str` - at `$.start_ns`" in note


def test_spans_in_a_collectors_file(folder, home, monkeypatch, receiver):
    """Spans in OTLP/JSON come under the call that they tell of, as if they were sent to us."""
    monkeypatch.setenv("TRACEBRIDGE_RECORDS", str(folder))
    claude = Claude(home, folder.parent)
    claude.hook(0, "UserPromptSubmit", prompt="hi")
    claude.prompt_line(0, "hi")
    claude.answer_line(3, "msg_1", {"type": "text", "text": "hello"}, began=1)
    claude.hook(3, "Stop")
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "claude-opus-5",
        "gen_ai.response.id": "msg_1",
    }
    span = {
        "traceId": "c" * 32,
        "spanId": "d" * 16,
        "name": "chat claude-opus-5",
        "kind": 3,
        "startTimeUnixNano": str(at(1)),
        "endTimeUnixNano": str(at(3)),
        "attributes": [{"key": k, "value": {"stringValue": v}} for k, v in told.items()],
    }
    export = {"resourceSpans": [{"scopeSpans": [{"scope": {"name": "litellm"}, "spans": [span]}]}]}
    (folder / "otlp.json").write_text(json.dumps(export) + "\n" + '{"resourceSpans": [7]}\n')
    assert watch_once(read_settings(), close_open=True)
    ours = {s.span_id: s for s in receiver.spans}
    (chat,) = [s for s in receiver.spans if s.attributes["tracebridge.span.type"] == "llm"]
    assert chat.attributes["tracebridge.llm.gateway"] == "litellm"
    assert ours["d" * 16].parent_span_id == chat.span_id
    assert ours["d" * 16].trace_id == chat.trace_id


def test_a_folder_that_cannot_be_read_is_told_of_once(folder, home, monkeypatch):
    """It may be made later; nothing else is held up by it."""
    missing = folder / "missing"
    monkeypatch.setenv("TRACEBRIDGE_RECORDS", f"{missing}\n{folder}")
    (folder / "calls.jsonl").write_bytes(line("one"))
    assert watch_once(read_settings())
    state = status(read_settings())
    assert state["links"]["waiting"] == 1
    note = f"records not readable: {missing}: No such file or directory"
    assert state["notes"] == {note: 1}
    missing.mkdir()
    (missing / "calls.jsonl").write_bytes(line("two"))
    assert watch_once(read_settings())
    assert status(read_settings())["links"]["waiting"] == 2
    assert home.exists()


def test_a_killed_watcher_loses_and_doubles_nothing(folder, monkeypatch, receiver):
    """Killed at any moment while records come in and files rotate: each call arrives once."""
    monkeypatch.setenv("TRACEBRIDGE_RECORDS", str(folder))
    file = folder / "calls.jsonl"
    count = 60
    sdk = {"request_headers": {"user-agent": "OpenAI/Python 3"}}
    for first in range(0, count, 20):
        with started(WATCH, stdin=subprocess.DEVNULL):
            for number in range(first, first + 20):
                with file.open("ab") as stream:
                    stream.write(line(str(number), usage=Usage(input_tokens=1), **sdk))
                if number == first + 10:
                    # It is at work by now, or not even begun.
                    wait_until(lambda: len(receiver.spans) > 0, "the first spans")
                    file.rename(folder / f"calls.{number}")
    assert watch_once(read_settings())
    # One that was killed before it heard that a span had arrived sends it once more, as it was.
    arrived = {span.span_id: span.attributes["gen_ai.response.id"] for span in receiver.spans}
    assert sorted(arrived.values(), key=lambda name: int(name[4:])) == [
        f"msg_{number}" for number in range(count)
    ]


def test_a_watcher_wakes_when_a_record_is_written(folder, monkeypatch, receiver):
    """Nobody has to ask: the line becomes a span while the watcher runs; one folder is missing."""
    monkeypatch.setenv("TRACEBRIDGE_RECORDS", f"{folder / 'missing'}\n{folder}")
    with started(WATCH, stdin=subprocess.DEVNULL):
        sdk = {"request_headers": {"user-agent": "OpenAI/Python 3"}}
        (folder / "calls.jsonl").write_bytes(line("one", **sdk))
        wait_until(lambda: len(receiver.spans) == 1, "the span")


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain for {what}")
        time.sleep(0.01)
