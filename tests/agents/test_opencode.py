"""OpenCode's adapter on input that is odd, hostile or cut, and on what its formats promise."""

from __future__ import annotations

import functools
import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracebridge.agents import Cursor, Launch, identify_call, opencode
from tracebridge.model import (
    HookEvent,
    ModelCall,
    Outcome,
    SessionInfo,
    Subagent,
    ToolCall,
    TurnEnd,
    Usage,
)
from tracebridge.turns import TurnAssembler

COMMANDS = {"hook": "/usr/bin/python3 -I -S '/opt/our hooks/tracebridge_hook.py' opencode /state"}
SCHEMA = """
    CREATE TABLE session (id, parent_id, directory, version, agent, time_created, time_updated);
    CREATE TABLE message (id, session_id, time_created, time_updated, data);
    CREATE TABLE part (id, message_id, session_id, time_created, time_updated, data);
"""
# As OpenCode writes it, without blanks.
compact = functools.partial(json.dumps, separators=(",", ":"))
NOW = 1_795_226_310_000

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def hook(payload, time_ns=1, size=None):
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return opencode.parse_hook(
        HookEvent(
            agent="opencode",
            time_ns=time_ns,
            pid=7,
            env={},
            payload=data,
            payload_bytes=size or len(data),
        )
    )


def told(kind, **facts):
    return {"type": kind, "session": "ses_a", "turn": "msg_u", **facts}


@pytest.fixture
def database(tmp_path):
    """Give a database with one session, in which a turn has run."""
    path = tmp_path / "opencode.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
        add(connection, "session", "ses_a", None, "/project", "1.18.33", None, NOW, NOW)
        user = {"role": "user", "time": {"created": NOW}}
        add(connection, "message", "msg_u", "ses_a", NOW, NOW, compact(user))
        add(connection, "message", "msg_1", "ses_a", NOW + 1, NOW + 9, compact(answer()))
        connection.commit()
    return path


def add(connection, table, *row):
    marks = ",".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)


def answer(**facts):
    return {
        "role": "assistant",
        "parentID": "msg_u",
        "modelID": "m",
        "providerID": "anthropic",
        "time": {"created": NOW + 1, "completed": NOW + 9},
        "tokens": {"input": 5, "output": 7, "reasoning": 2, "cache": {"read": 20, "write": 3}},
        "finish": "stop",
        **facts,
    }


def parts(reading, part_type):
    return [s.part for s in reading.sightings if isinstance(s.part, part_type)]


def test_usage_counts_cache_and_reasoning_in(database):
    """Input includes what came from the cache, output what was reasoning."""
    (call,) = parts(opencode.read_transcript(database / "ses_a", Cursor()), ModelCall)
    assert call.usage == Usage(
        input_tokens=28,
        output_tokens=9,
        cache_read_tokens=20,
        cache_write_tokens=3,
        reasoning_tokens=2,
    )


def test_what_is_read_is_not_read_again(database):
    """A second look at a quiet database gives nothing new, and the cursor stays."""
    first = opencode.read_transcript(database / "ses_a", Cursor())
    second = opencode.read_transcript(database / "ses_a", first.cursor)
    assert second.cursor == first.cursor
    assert set(second.sightings) <= set(first.sightings)


def test_a_database_holds_each_session(database):
    """The whole database stands for the sessions that no other started."""
    with closing(sqlite3.connect(database)) as connection:
        add(connection, "session", "ses_child", "ses_a", "/", "1", "general", NOW, NOW)
        add(connection, "session", "ses_b", None, "/", "1", None, NOW, NOW)
        connection.commit()
    assert opencode.transcripts(database) == [database / "ses_a", database / "ses_b"]
    assert opencode.transcripts(database / "ses_a") == [database / "ses_a"]


def test_a_child_session_is_a_subagent_of_the_turn(database):
    """Its calls belong to the parent's session and to the turn whose task started it."""
    task = {
        "type": "tool",
        "tool": "task",
        "callID": "call_1",
        "state": {
            "status": "completed",
            "input": {"subagent_type": "general"},
            "metadata": {"sessionId": "ses_child"},
            "time": {"start": NOW + 3, "end": NOW + 8},
        },
    }
    with closing(sqlite3.connect(database)) as connection:
        add(connection, "part", "prt_1", "msg_1", "ses_a", NOW + 3, NOW + 8, compact(task))
        add(connection, "session", "ses_child", "ses_a", "/", "1", "general", NOW + 3, NOW + 8)
        inner = compact(answer(parentID="msg_child"))
        add(connection, "message", "msg_2", "ses_child", NOW + 4, NOW + 7, inner)
        connection.commit()
    reading = opencode.read_transcript(database / "ses_a", Cursor())
    assert {sighting.session_id for sighting in reading.sightings} == {"ses_a"}
    assembler = TurnAssembler("opencode", "ses_a")
    assembler.add(reading.sightings)
    (turn,) = assembler.turns()
    (subagent,) = turn.subagents
    assert (subagent.key, subagent.tool_key, subagent.type) == ("ses_child", "call_1", "general")
    assert {chat.key: chat.subagent_id for chat in turn.chats}["msg_2"] == "ses_child"


def test_a_damaged_row_costs_itself_alone(database):
    """Rows that are not JSON are counted, and the others are read."""
    with closing(sqlite3.connect(database)) as connection:
        add(connection, "message", "msg_x", "ses_a", NOW, NOW, "{half")
        add(connection, "message", "msg_y", "ses_a", NOW, NOW, b"\xff\x00")
        add(connection, "part", "prt_x", "msg_1", "ses_a", NOW, NOW, "[]")
        connection.commit()
    reading = opencode.read_transcript(database / "ses_a", Cursor())
    assert sum(reading.notes.values()) == 3
    assert len(parts(reading, ModelCall)) == 1


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_what_is_no_database_is_an_os_error(content, tmp_path):
    """The watcher notes it and goes on."""
    path = tmp_path / "opencode.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OSError, match=r"transcript|No such file"):
        opencode.read_transcript(path / "ses_a", Cursor())


def test_a_database_of_another_shape_is_an_os_error(database):
    """A missing table is told as such, not as a fault of ours."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TABLE part")
    with pytest.raises(OSError, match="no such table"):
        opencode.read_transcript(database / "ses_a", Cursor())


@pytest.mark.parametrize("session", ["../../etc", "ses a", "", "x" * 200])
def test_a_hostile_session_id_names_no_path(session, tmp_path):
    """An id off the wire becomes no part of a path unless it looks like one of theirs."""
    assert opencode.find_transcript(session, tmp_path) is None


@pytest.mark.parametrize(
    ("error", "outcome", "kind"),
    [
        (None, Outcome.COMPLETED, None),
        ({"name": "APIError", "data": {"statusCode": 429}}, Outcome.FAILED, "429"),
        ({"name": "MessageAbortedError", "data": {}}, Outcome.INTERRUPTED, "interrupted"),
        (
            {"name": "APIError", "data": {"message": "Cannot connect to API: x"}},
            Outcome.FAILED,
            "connection_error",
        ),
    ],
)
def test_idle_ends_the_turn(error, outcome, kind):
    """How it ended is told by the error that came before."""
    (end,) = parts(hook(told("idle", error=error)), TurnEnd)
    assert (end.outcome, end.error_type) == (outcome, kind)


def test_a_subagents_idle_does_not_end_the_turn():
    """It ends the subagent."""
    (part,) = (s.part for s in hook(told("idle", subagent="ses_c", answer="x")).sightings)
    assert part == Subagent(key="ses_c", end_ns=1, output="x")


def test_a_stream_that_was_cut_is_a_failed_call():
    """An answer that nobody finished is no answer: the turn goes on."""
    reading = hook(told("message", info={**answer(finish="unknown"), "id": "msg_1"}))
    (call,) = parts(reading, ModelCall)
    assert (call.error_type, call.usage) == ("stream_cut", None)
    assert parts(reading, TurnEnd) == []


def test_a_prompt_tells_where_the_transcript_is():
    """Database and session together name it; the process is OpenCode's own."""
    info = {"id": "msg_u", "time": {"created": NOW}}
    (session,) = parts(hook(told("prompt", info=info, database="/d/opencode.db")), SessionInfo)
    assert (session.transcript, session.pid) == ("/d/opencode.db/ses_a", 7)


def test_a_payload_that_was_cut_is_noted():
    """Nothing is made of half a payload."""
    reading = hook(b'{"type":"part","session":"ses_a"', size=99)
    assert reading.sightings == ()
    assert list(reading.notes) == ["hook payload cut at its cap"]


def test_the_watchers_hook_is_no_event():
    """Started without a payload, it tells nothing and is not counted as odd."""
    reading = hook(b"")
    assert (reading.sightings, dict(reading.notes)) == ((), {})


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["prompt", "message", "part", "idle", "retry", "permission.asked", "new"]),
    st.dictionaries(
        st.sampled_from(["info", "part", "error", "status", "call", "asked", "subagent", "text"]),
        json_values
        | st.dictionaries(
            st.sampled_from(
                ["id", "type", "tool", "callID", "messageID", "state", "time", "tokens"]
            ),
            json_values,
            max_size=4,
        ),
        max_size=4,
    ),
)
def test_odd_events_never_raise(kind, facts):
    """Whatever a newer OpenCode sends is taken in or passed over."""
    for sighting in hook(told(kind, **facts)).sightings:
        assert sighting.session_id == "ses_a"


def test_headers_of_the_plugin_name_turn_and_call():
    """Session, turn, call and subagent come from headers alone."""
    headers = {
        "x-session-id": "ses_c",
        "x-parent-session-id": "ses_b",
        "x-tracebridge-session": "ses_a",
        "x-tracebridge-turn": "msg_u",
        "x-tracebridge-call": "msg_1",
    }
    identity = identify_call(headers, {})
    assert identity is not None
    assert (identity.agent, identity.session_id, identity.turn_key) == (
        "opencode",
        "ses_a",
        "msg_u",
    )
    assert (identity.subagent_id, identity.call_key) == ("ses_c", "msg_1")


def test_headers_without_the_plugin_name_the_session():
    """A title shows by having no tools; other programs' session headers are not ours."""
    headers = {"x-session-id": "ses_a", "user-agent": "opencode/1.18.33 ai-sdk"}
    title, main = identify_call(headers, {}), identify_call(headers, {"tools": [{}]})
    assert title is not None
    assert main is not None
    assert (title.request_class, main.request_class) == ("auxiliary", "main")
    assert opencode.identify_call({"x-session-id": "s", "user-agent": "other/1"}, {}) is None


@pytest.mark.parametrize("before", [{}, {"plugin": ["theirs"], "model": "a/b"}, {"plugin": []}])
def test_wiring_adds_one_plugin_and_takes_it_out(before):
    """Beside what is there, once however often, and gone without a trace."""
    wired = opencode.wire(before, COMMANDS)
    assert opencode.wire(wired, COMMANDS) == wired
    assert wired["plugin"][:-1] == before.get("plugin", [])
    path, options = wired["plugin"][-1]
    assert path == "file:///opt/our%20hooks/opencode.js"
    assert options["home"] == "/state"
    rest = opencode.unwire(wired)
    assert rest == {name: value for name, value in before.items() if value}


def test_a_plugin_list_that_is_none_is_left_alone():
    """Nothing is guessed about what somebody wrote there."""
    with pytest.raises(ValueError, match="plugin"):
        opencode.wire({"plugin": "theirs"}, COMMANDS)


def test_launch_sets_the_environment_alone(home):
    """The user's own configuration in the environment stays, beneath ours."""
    given = {
        "HOME": str(home),
        "OPENCODE_CONFIG_CONTENT": '{"model":"anthropic/x","share":"disabled"}',
    }
    launch = Launch(commands=COMMANDS, gateway_url="http://g", env=given)
    command, env = opencode.launch(["opencode", "run"], launch)
    settings = json.loads(env["OPENCODE_CONFIG_CONTENT"])
    assert command == ["opencode", "run"]
    assert settings["share"] == "disabled"
    base = settings["provider"]["anthropic"]["options"]["baseURL"]
    assert base == "http://g/api/anthropic/v1"


def test_preparing_touches_no_folder_in_use(tmp_path):
    """Where packages of the user's lie, nothing is added; elsewhere the lock file is enough."""
    folder = tmp_path / ".config" / "opencode"
    folder.mkdir(parents=True)
    (folder / "package.json").write_text("{}")
    opencode.prepare({"HOME": str(tmp_path)})
    assert [path.name for path in folder.iterdir()] == ["package.json"]
    (folder / "package.json").unlink()
    opencode.prepare({"HOME": str(tmp_path)})
    assert sorted(path.name for path in folder.iterdir()) == ["node_modules", "package-lock.json"]


def test_upstream_is_where_requests_go_today(tmp_path):
    """The base URL of Anthropic's provider ends in a version that our gateway adds itself."""
    settings = tmp_path / ".config" / "opencode" / "opencode.json"
    settings.parent.mkdir(parents=True)
    provider = {"anthropic": {"options": {"baseURL": "https://x.example/v1"}}}
    settings.write_text(json.dumps({"provider": provider}))
    assert opencode.upstream({}, tmp_path, tmp_path) == "anthropic=https://x.example"
    assert opencode.upstream({"OPENAI_API_KEY": "k"}, tmp_path, tmp_path) == "openai"


def test_a_failing_shell_and_an_aborted_tool():
    """A non-zero exit is an error with its code; a tool that was broken off says so."""
    state = {"status": "completed", "metadata": {"exit": 3}, "time": {"start": 1, "end": 2}}
    part = {"id": "p", "messageID": "m", "type": "tool", "tool": "bash", "callID": "c"}
    (failed,) = parts(hook(told("part", part={**part, "state": state})), ToolCall)
    assert (failed.error_type, failed.exit_code) == ("exit_nonzero", 3)
    state = {"status": "error", "error": "Tool execution aborted", "time": {"start": 1, "end": 2}}
    (aborted,) = parts(hook(told("part", part={**part, "state": state})), ToolCall)
    assert aborted.error_type == "interrupted"


def stored(database, *rows):
    """Add rows: a table, then its columns."""
    with closing(sqlite3.connect(database)) as connection:
        for table, *row in rows:
            data = row[-1] if not isinstance(row[-1], dict) else compact(row[-1])
            add(connection, table, *row[:-1], data)
        connection.commit()


def turns_in(database):
    reading = opencode.read_transcript(database / "ses_a", Cursor())
    assembler = TurnAssembler("opencode", "ses_a")
    assembler.add(reading.sightings)
    return assembler.turns()


def user(created):
    return {"role": "user", "time": {"created": created}}


def summing_up(auto, at=NOW + 20):
    """Rows of a summary: who asked for it, and what was written."""
    written = answer(parentID="msg_s", summary=True, time={"created": at + 1, "completed": at + 5})
    return [
        ("message", "msg_s", "ses_a", at, at, user(at)),
        ("part", "prt_s", "msg_s", "ses_a", at, at, {"type": "compaction", "auto": auto}),
        ("message", "msg_t", "ses_a", at + 1, at + 5, written),
    ]


def test_copies_in_a_fork_are_not_its_own(database):
    """What was said before the session was made was said elsewhere, and counts there."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE session SET time_created = ?", (NOW + 50,))
        connection.commit()
    said = [("part", "prt_n", "msg_n", "ses_a", NOW + 60, NOW + 60, {"type": "text", "text": "x"})]
    said.append(("message", "msg_n", "ses_a", NOW + 60, NOW + 60, user(NOW + 60)))
    stored(database, *said)
    (turn,) = turns_in(database)
    assert (turn.turn_key, turn.chats) == ("msg_n", ())


def test_a_summary_that_the_user_wants_is_a_turn(database):
    """It is a command's, and what was written is no answer."""
    stored(database, *summing_up(auto=False))
    _, turn = turns_in(database)
    (prompt,) = turn.prompts
    (compaction,) = turn.compactions
    assert (prompt.key, prompt.origin, compaction.trigger) == ("msg_s", "command", "manual")
    assert (turn.outcome, turn.answer) == (Outcome.COMPLETED, None)


@pytest.mark.parametrize("marked", [True, False])
def test_what_opencode_says_itself_begins_no_turn(marked, database):
    """To sum up, to go on, or to say the prompt once more: all is the work of one turn."""
    at = NOW + 26
    said = {"type": "text", "text": "go on", "synthetic": True}
    said["metadata"] = {"compaction_continue": True}
    last = answer(parentID="msg_w", time={"created": at + 1, "completed": at + 9})
    stored(
        database,
        *summing_up(auto=True),
        ("message", "msg_w", "ses_a", at, at, user(at)),
        ("part", "prt_w", "msg_w", "ses_a", at, at, said if marked else {"type": "text"}),
        ("message", "msg_x", "ses_a", at + 1, at + 9, last),
    )
    (turn,) = turns_in(database)
    assert [chat.key for chat in turn.chats] == ["msg_1", "msg_t", "msg_x"]
    assert turn.end_ns == (at + 9) * 1_000_000


def test_messages_that_name_each_other_are_no_endless_tale(database):
    """A damaged row may name one that comes after it."""
    stored(database, *summing_up(auto=True))
    with closing(sqlite3.connect(database)) as connection:
        circle = compact(answer(parentID="msg_s"))
        connection.execute("UPDATE message SET data = ? WHERE id = 'msg_1'", (circle,))
        connection.commit()
    assert turns_in(database)


def test_reading_on_remembers_the_turn(database):
    """Rows that come one by one give what they give together."""
    rows = summing_up(auto=True)
    at = NOW + 26
    rows += [
        ("message", "msg_w", "ses_a", at, at, user(at)),
        ("part", "prt_w", "msg_w", "ses_a", at, at, {"type": "text", "text": "again"}),
        ("message", "msg_x", "ses_a", at + 1, at + 9, answer(parentID="msg_w")),
    ]
    cursor, sightings = Cursor(), []
    for row in rows:
        stored(database, row)
        reading = opencode.read_transcript(database / "ses_a", cursor)
        cursor = reading.cursor
        sightings += reading.sightings
    assert {s.turn_key for s in sightings} == {None, "msg_u"}


def test_cut_answers_without_end_are_told_within_bounds(database):
    """A hundred are told, the rest is counted, and an answer in the end is told too."""
    rows = []
    for number in range(150):
        at = NOW + 10 + number
        cut = answer(finish="unknown", time={"created": at, "completed": at + 1})
        rows.append(("message", f"msg_2{number:03}", "ses_a", at, at + 1, cut))
    stored(database, *rows)
    path = database / "ses_a"
    first = opencode.read_transcript(path, Cursor())
    assert len(parts(first, ModelCall)) == 101
    assert sum(first.notes.values()) == 50
    begun = answer(time={"created": NOW + 200}, finish=None)
    stored(database, ("message", "msg_3", "ses_a", NOW + 200, NOW + 200, begun))
    assert parts(opencode.read_transcript(path, first.cursor), ModelCall) == []
    with closing(sqlite3.connect(database)) as connection:
        over = compact(answer(time={"created": NOW + 200, "completed": NOW + 300}))
        row = (over, NOW + 300)
        connection.execute("UPDATE message SET data=?, time_updated=? WHERE id='msg_3'", row)
        connection.commit()
    (last,) = parts(opencode.read_transcript(path, first.cursor), ModelCall)
    assert last.key == "msg_3"


def test_a_call_of_which_nothing_came_is_told_by_the_gateway_alone(database):
    """Its row is there before the request: whether that was sent is not known."""
    begun = answer(time={"created": NOW + 20}, finish=None)
    stored(database, ("message", "msg_2", "ses_a", NOW + 20, NOW + 20, begun))
    (call,) = parts(opencode.read_transcript(database / "ses_a", Cursor()), ModelCall)
    assert call.key == "msg_1"


def test_what_is_new_is_counted_and_passed_over(database):
    """Parts of a kind that nobody knew yet are noted, those that say nothing are not."""
    kinds = ["hologram", "hologram", "snapshot", "step-start"]
    rows = [
        ("part", f"prt_{place}", "msg_1", "ses_a", NOW, NOW + 9, {"type": kind})
        for place, kind in enumerate(kinds)
    ]
    stored(database, *rows)
    reading = opencode.read_transcript(database / "ses_a", Cursor())
    assert dict(reading.notes) == {"part 'hologram' in OpenCode's database ignored": 2}


@pytest.mark.parametrize("column", ["directory", "version", "agent"])
def test_a_column_less_is_a_fact_less(column, database):
    """A database of another version is read without what it lacks."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"ALTER TABLE session DROP COLUMN {column}")
    (turn,) = turns_in(database)
    assert turn.outcome is Outcome.COMPLETED


def test_a_locked_database_is_read_later(database):
    """The note says so, and nothing is passed over."""
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match=r"locked.*read as soon as"):
            opencode.read_transcript(database / "ses_a", Cursor())
        writer.rollback()
    assert len(turns_in(database)) == 1


def test_a_database_that_is_cut_is_an_os_error(database):
    """Half a file says that it is damaged."""
    stored(database, *[("part", f"p{n}", "m", "s", 1, 1, "x" * 999) for n in range(99)])
    whole = database.read_bytes()
    database.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="damaged"):
        opencode.read_transcript(database / "ses_a", Cursor())


def test_a_signal_ends_the_turn_as_interrupted():
    """The plugin tells of it, for OpenCode itself does not."""
    (end,) = parts(hook(told("interrupted", signal="SIGINT"), time_ns=5), TurnEnd)
    assert (end.outcome, end.end_ns) == (Outcome.INTERRUPTED, 5)


@pytest.mark.parametrize(
    ("why", "ends"),
    [("", 1), (" with the following feedback: use make", 0)],
    ids=["without a word", "with one"],
)
def test_a_refusal_ends_the_turn_unless_it_says_what_else(why, ends):
    """Told what the user wants instead, OpenCode goes on."""
    refusal = "The user rejected permission to use this specific tool call"
    state = {"status": "error", "error": f"{refusal}{why or '.'}", "time": {"start": 1, "end": 2}}
    part = {"id": "p", "messageID": "m", "type": "tool", "tool": "bash", "callID": "c"}
    reading = hook(told("part", part={**part, "state": state}))
    (tool,) = parts(reading, ToolCall)
    assert tool.error_type == "permission_denied"
    assert [end.outcome for end in parts(reading, TurnEnd)] == [Outcome.INTERRUPTED] * ends


def test_a_completed_call_without_an_end_is_a_failed_one(database):
    """A request that was too long leaves neither answer nor error in its row."""
    over = answer(finish=None, time={"created": NOW + 20, "completed": NOW + 21})
    stored(database, ("message", "msg_2", "ses_a", NOW + 20, NOW + 21, over))
    reading = opencode.read_transcript(database / "ses_a", Cursor())
    (_, call) = parts(reading, ModelCall)
    assert (call.error_type, call.usage) == ("no_answer", None)


SUMMARIZER = "You are a context summarization agent. You are given a conversation"


@pytest.mark.parametrize(
    ("body", "request_class"),
    [
        ({"system": [{"type": "text", "text": SUMMARIZER}]}, "compaction"),
        ({"system": SUMMARIZER}, "compaction"),
        ({"system": [{"type": "text", "text": "You are a title generator."}]}, "auxiliary"),
        ({"max_tokens": 8000}, "auxiliary"),
        ({"system": SUMMARIZER, "tools": [{}]}, "main"),
        # So many tools that what they are is not looked at.
        ({"tool_choice": "auto"}, "main"),
        ({"system": 7, "tools": []}, "auxiliary"),
    ],
)
def test_what_a_request_serves_shows_without_the_plugin(body, request_class):
    """Side requests have no tools; instructions tell a summary from a title, where they are."""
    headers = {"x-session-id": "ses_a", "user-agent": "opencode/1.18.33 ai-sdk"}
    identity = identify_call(headers, body)
    assert identity is not None
    assert identity.request_class == request_class


def test_a_provider_of_ones_own_passes_our_gateway(tmp_path, monkeypatch):
    """In a configuration with comments, where the XDG variables say; by the API that it speaks."""
    folder = tmp_path / "xdg" / "opencode"
    folder.mkdir(parents=True)
    package = "@ai-sdk/openai-compatible"
    mine = {"npm": package, "options": {"baseURL": "https://gw.example/v1/"}}
    text = json.dumps({"model": "mine/m-1", "provider": {"mine": mine}})
    (folder / "opencode.jsonc").write_text(f"// of my own\n{text[:-1]},\n}}")
    monkeypatch.chdir(tmp_path)
    env = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert opencode.upstream(env, tmp_path, tmp_path) == "openai=https://gw.example/v1"
    given = Launch(commands=COMMANDS, gateway_url="http://g", env=env)
    _, launched = opencode.launch(["opencode"], given)
    settings = json.loads(launched["OPENCODE_CONFIG_CONTENT"])
    assert settings["provider"]["mine"]["options"]["baseURL"] == "http://g/api"


def test_a_transcript_is_found_where_the_variables_say(tmp_path, monkeypatch):
    """XDG_DATA_HOME moves the folder, OPENCODE_DB the file."""
    (tmp_path / "opencode").mkdir()
    (tmp_path / "opencode" / "mine.db").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert opencode.find_transcript("ses_a", tmp_path / "home") is None
    monkeypatch.setenv("OPENCODE_DB", "mine.db")
    expected = tmp_path / "opencode" / "mine.db" / "ses_a"
    assert opencode.find_transcript("ses_a", tmp_path / "home") == expected


ids = st.sampled_from(["msg_u", "msg_1", "msg_s", "msg_w", "ses_a", "ses_b"])
times = st.sampled_from([NOW, NOW + 30]) | st.integers(-5, 2**44) | st.text(max_size=3) | st.none()
fields = st.sampled_from(
    ["role", "type", "parentID", "time", "tokens", "finish", "summary", "error", "state", "auto"]
)
row_data = st.dictionaries(
    fields, json_values | ids | st.sampled_from(["user", "assistant", "compaction", "tool"])
).map(compact) | st.binary(max_size=4)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(ids, ids, times, times, row_data), max_size=5),
    st.lists(st.tuples(ids, ids, times, times, row_data), max_size=5),
    st.lists(st.tuples(ids, ids | st.none(), times, times), max_size=3),
)
def test_odd_rows_never_raise(messages, written, sessions):
    """Whatever stands in the tables is taken in or passed over, also when it is read on from."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "opencode.db")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.executescript(SCHEMA)
            add(connection, "session", "ses_a", None, "/", "1", None, NOW, NOW)
            for key, parent, created, updated in sessions:
                add(connection, "session", key, parent, 7, b"x", 1.5, created, updated)
            for row in messages:
                add(connection, "message", *row)
            for number, (message, session, *rest) in enumerate(written):
                add(connection, "part", f"prt_{number}", message, session, *rest)
            connection.commit()
        reading = opencode.read_transcript(path / "ses_a", Cursor())
        opencode.read_transcript(path / "ses_a", reading.cursor)
        assert opencode.transcripts(path)
