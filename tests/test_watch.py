"""The watcher: what waits becomes spans at a backend, once, whatever happens on the way."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from beside import started
from claude_files import SECOND, SESSION, TURN, Claude, at, said, used

from tracebridge import watch_lock
from tracebridge.agents import agent
from tracebridge.ids import root_span_id, span_id, trace_id
from tracebridge.model import CallIdentity, GatewayCall, Usage
from tracebridge.settings import read_settings
from tracebridge.store import Store
from tracebridge.testing.receiver import Answer, Receiver
from tracebridge.watch import watch_once
from tracebridge.watch_lock import is_watched, locked
from tracebridge.watcher import Watcher

TRACE = trace_id("claude-code", SESSION, TURN)


@pytest.fixture
def claude(home: Path, tmp_path: Path) -> Claude:
    return Claude(home, tmp_path)


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


def a_call(**known) -> GatewayCall:
    identity = CallIdentity(agent="claude-code", session_id=SESSION, turn_key=TURN)
    given = {"call_id": "call-1", "start_ns": at(1), "end_ns": at(2), "identity": identity} | known
    return GatewayCall(gateway="tracebridge", method="POST", path="/v1/messages", **given)


def tree_of(receiver) -> dict[str, str | None]:
    """Return the received spans by name with their parents' names."""
    names = {span.span_id: span.name for span in receiver.spans}
    return {span.name: names.get(span.parent_span_id) for span in receiver.spans}


WATCH = [sys.executable, "-m", "tracebridge", "watch"]


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain for {what}")
        time.sleep(0.01)


def test_a_turn_arrives_with_all_its_parts(claude, receiver):
    """Hooks, transcript and a gateway call of one turn become one trace at the backend."""
    env = {"RESPAN_CUSTOMER_ID": "acme", "RESPAN_METADATA": '{"team": "blue"}'}
    claude.hook(0, "UserPromptSubmit", env, prompt="edit it")
    claude.prompt_line(0, "edit it")
    claude.answer_line(
        2,
        "msg_1",
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        used("toolu_1", "Write", file_path="/project/a.py", content="1\n2\n"),
        began=1,
        stop="tool_use",
        thinkingDurationMs=500,
    )
    tool = {
        "tool_name": "Write",
        "tool_input": {"file_path": "/project/a.py", "content": "1\n2\n"},
        "tool_use_id": "toolu_1",
    }
    claude.hook(2.1, "PreToolUse", env, **tool)
    response = {"type": "create", "filePath": "/project/a.py", "structuredPatch": []}
    claude.hook(2.3, "PostToolUse", env, **tool, tool_response=response, duration_ms=100)
    claude.answer_line(4, "msg_2", said("done"), began=3)
    claude.hook(4.1, "Stop", env, last_assistant_message="done", background_tasks=[])
    usage = Usage(input_tokens=115, output_tokens=20)
    claude.spool.write_call(a_call(response_id="msg_1", model="claude-opus-5-5", usage=usage))
    assert watch_once(read_settings())
    assert tree_of(receiver) == {
        "invoke_agent claude-code": None,
        "chat claude-opus-5-5": "invoke_agent claude-code",
        "thinking": "chat claude-opus-5-5",
        "execute_tool Write": "invoke_agent claude-code",
        "file_edit a.py": "execute_tool Write",
    }
    assert {span.trace_id for span in receiver.spans} == {TRACE}
    assert len(receiver.spans) == 6
    for span in receiver.spans:
        assert span.attributes["user.id"] == "acme"
        assert span.attributes["tracebridge.metadata.team"] == "blue"
        assert span.attributes["gen_ai.conversation.id"] == SESSION
    sources = {
        span.attributes["gen_ai.response.id"]: span.attributes["tracebridge.llm.source"]
        for span in receiver.spans
        if span.name.startswith("chat")
    }
    assert sources == {"msg_1": "gateway+transcript", "msg_2": "transcript"}
    assert receiver.spans[-1].span_id == root_span_id(TRACE)


def test_the_second_time_adds_nothing(claude, receiver):
    """The same events again, and the transcript read anew, give not one span more."""
    claude.simple_turn()
    assert watch_once(read_settings())
    before = len(receiver.spans)
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    claude.hook(3, "Stop", last_assistant_message="done", background_tasks=[])
    watcher = Watcher(read_settings())
    watcher.import_transcript(agent("claude-code"), claude.transcript)
    watcher.close()
    assert watch_once(read_settings())
    assert len(receiver.spans) == before


def test_an_outage_delays_a_turn_and_loses_nothing(claude, receiver):
    """While the backend is down the exit code says so; when it is back the turn arrives, once."""
    receiver.answer_next(Answer(status=503))
    claude.simple_turn()
    assert not watch_once(read_settings())
    assert receiver.spans == []
    assert watch_once(read_settings())
    assert len(receiver.spans) == 2
    assert len({span.span_id for span in receiver.spans}) == 2


def test_without_a_sink_nothing_is_sent_and_all_is_kept(claude, home):
    """Nothing leaves the machine until the user names a sink; the turn can be shown all the same."""
    claude.simple_turn()
    assert watch_once(read_settings())
    with Store(home) as store:
        assert [row.trace_id for row in store.turns()] == [TRACE]
        assert store.waiting() == 0


def test_garbage_in_the_spool_is_set_aside(claude, receiver, home):
    """Files that cannot be understood are moved away and counted; the turn beside them arrives."""
    (claude.spool.new / "00000000000000000001-1-0.event").write_bytes(b"\xff\x00garbage")
    (claude.spool.new / "00000000000000000002-1-0.event").write_bytes(b"")
    claude.raw_hook(at(1), b"not json")
    claude.raw_hook(at(1), b'{"session_id": 7}')
    claude.simple_turn()
    assert watch_once(read_settings())
    assert len(receiver.spans) == 2
    with Store(home) as store:
        notes = store.notes()
    assert notes["spool file set aside"] == 2
    assert notes["hook payload not JSON"] == 1
    assert len(list((home / "spool" / "bad").iterdir())) == 2
    assert claude.spool.depth() == 0


def test_of_a_torn_file_the_whole_calls_are_taken_in(claude, home):
    """What is left of it is moved away, for people to look at."""
    claude.spool.write_calls(
        [a_call(identity=None, response_id=f"msg_{n}", call_id=n) for n in "ab"]
    )
    (path,) = claude.spool.waiting()
    path.write_bytes(path.read_bytes()[:-1])
    assert watch_once(read_settings())
    with Store(home) as store:
        assert [call.call_id for call in store.calls_since(0)] == ["a"]
        assert store.notes()["spool file set aside"] == 1
    assert [kept.name for kept in (home / "spool" / "bad").iterdir()] == [path.name]
    assert claude.spool.depth() == 0


def test_a_late_call_becomes_a_new_span(claude, receiver):
    """What was told stays as it was: a call that comes after the turn adds its own span only."""
    claude.simple_turn()
    assert watch_once(read_settings())
    told = {span.span_id for span in receiver.spans}
    claude.spool.write_call(a_call(request_id="req-late", error_type="429", status_code=429))
    assert watch_once(read_settings())
    (late,) = (span for span in receiver.spans if span.span_id not in told)
    assert late.trace_id == TRACE
    assert late.parent_span_id == root_span_id(TRACE)
    assert late.span_id == span_id(TRACE, "llm", "req-late")
    assert late.attributes["tracebridge.link.evidence"] == "turn_id"


def test_a_call_the_transcript_told_already_is_not_told_twice(claude, receiver):
    """A gateway record that comes late for a call that is known already is the same span."""
    claude.simple_turn()
    assert watch_once(read_settings())
    before = len(receiver.spans)
    claude.spool.write_call(a_call(response_id=f"msg_{TURN}"))
    assert watch_once(read_settings())
    assert len(receiver.spans) == before


def test_orphans_go_out_alone_with_the_reason(claude, receiver, home):
    """A call that no turn claims is not lost: it becomes a trace of its own and is counted."""
    claude.spool.write_call(a_call(identity=None, response_id="msg_x"))
    assert watch_once(read_settings())
    assert receiver.spans == []
    assert watch_once(read_settings(), close_open=True)
    (orphan,) = receiver.spans
    assert orphan.attributes["tracebridge.link.reason"]
    assert not orphan.parent_span_id
    with Store(home) as store:
        assert store.link_counts() == {"orphan": 1}


def test_open_turns_stay_open_until_asked(claude, receiver):
    """`--once` leaves a running turn alone; `--close-open` ends it as abandoned."""
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    assert watch_once(read_settings())
    assert receiver.spans == []
    assert watch_once(read_settings(), close_open=True)
    (root,) = receiver.spans
    assert root.attributes["tracebridge.turn.outcome"] == "abandoned"


def test_an_agent_that_was_killed_leaves_an_abandoned_turn(claude, receiver):
    """When the agent's process is gone without a word, its turn ends all the same."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    claude.hook(0, "UserPromptSubmit", {"CLAUDE_PID": str(gone.pid)}, prompt="hello")
    now = [time.time_ns()]
    watcher = Watcher(read_settings(), clock=lambda: now[0])
    watcher.step()
    now[0] += 60 * SECOND
    watcher.step()
    watcher.close()
    assert watch_once(read_settings())
    (root,) = receiver.spans
    assert root.attributes["tracebridge.turn.outcome"] == "abandoned"


def test_a_launched_command_gives_its_calls_tags_and_its_end(claude, receiver):
    """Through `run`, a turn has the tags that no hook told, and is over with its process."""
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    with started([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        call = a_call(launcher_pid=process.pid, launcher_env={"RESPAN_CUSTOMER_ID": "acme"})
        claude.spool.write_call(call)
        assert watch_once(read_settings())
        assert receiver.spans == []
    assert watch_once(read_settings())
    (root,) = [span for span in receiver.spans if not span.parent_span_id]
    assert root.attributes["tracebridge.turn.outcome"] == "abandoned"
    assert {span.attributes["user.id"] for span in receiver.spans} == {"acme"}
    assert len(receiver.spans) == 2


def test_a_turn_points_to_what_its_agent_was_started_in(claude, receiver):
    """By a span link and attributes; the traceparent that an agent gives its hooks is not it."""
    outer = f"00-{'ab' * 16}-{'cd' * 8}-01"
    env = {"TRACEPARENT": f"00-{'12' * 16}-{'34' * 8}-01", "TRACEBRIDGE_TRACEPARENT": outer}
    claude.hook(0, "UserPromptSubmit", env, prompt="hello")
    claude.hook(1, "Stop", env, last_assistant_message="hi")
    assert watch_once(read_settings())
    (root,) = receiver.spans
    (link,) = root.message.links
    assert (link.trace_id.hex(), link.span_id.hex()) == ("ab" * 16, "cd" * 8)
    assert root.attributes["tracebridge.outer.trace_id"] == "ab" * 16
    assert root.attributes["tracebridge.outer.span_id"] == "cd" * 8


def test_an_outer_context_that_is_none_is_noted(claude, receiver, home):
    """Zeros, rubbish and other versions are no context."""
    for wrong in ("rubbish", f"00-{'0' * 32}-{'cd' * 8}-01", f"01-{'ab' * 16}-{'cd' * 8}-01"):
        claude.hook(0, "UserPromptSubmit", {"TRACEBRIDGE_TRACEPARENT": wrong}, prompt="hello")
    claude.hook(1, "Stop", last_assistant_message="hi")
    assert watch_once(read_settings())
    (root,) = receiver.spans
    assert not root.message.links
    with Store(home) as store:
        (note,) = [note for note in store.notes() if "TRACEBRIDGE_TRACEPARENT" in note]
    assert "00-TRACE_ID-SPAN_ID-01" in note


def test_a_fork_tells_only_what_is_new(claude, receiver, home, tmp_path):
    """A forked session's file begins with copied lines: they add nothing."""
    claude.simple_turn()
    assert watch_once(read_settings())
    before = {span.span_id for span in receiver.spans}
    fork = Claude(home, tmp_path, session="f" * 8)
    fork.turn = "new-turn"
    copied = claude.transcript.read_text().replace(SESSION, fork.session).splitlines(keepends=True)
    lines = [line.replace(TURN, fork.turn) for line in copied if "api-request" not in line]
    fork.transcript.write_text("".join(lines))
    fork.simple_turn(began=100, text="and now?")
    assert watch_once(read_settings())
    new = [span for span in receiver.spans if span.span_id not in before]
    assert {span.trace_id for span in new} == {trace_id("claude-code", fork.session, "new-turn")}


def test_only_one_watcher_lives(home):
    """A second watcher sees the first one's lock and leaves; when the first ends, the lock is free."""
    with started(WATCH, stdin=subprocess.DEVNULL) as first:
        wait_until(lambda: is_watched(home), "the first watcher")
        assert subprocess.run(WATCH, timeout=180, check=False).returncode == 0
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        assert first.wait(180) == 0
    assert not is_watched(home)


def test_who_only_asks_for_a_watcher_keeps_none_away(home, monkeypatch):
    """The lock is held for a moment then; one that comes just now waits for that."""
    home.mkdir()
    with (home / "watch.lock").open("w") as asking:
        fcntl.flock(asking, fcntl.LOCK_EX)
        monkeypatch.setattr(watch_lock.time, "sleep", lambda _: fcntl.flock(asking, fcntl.LOCK_UN))
        with locked(home, None) as lock:
            assert lock is not None


def test_a_killed_watcher_loses_and_doubles_nothing(receiver, tmp_path, home):
    """SIGKILL at any moment: after all restarts the backend has the spans of an undisturbed run."""
    chance = random.Random(7)
    expected = set()
    for number in range(6):
        one = Claude(home, tmp_path, session=f"session-{number}", turn=f"turn-{number}")
        one.simple_turn(began=10 * number)
        trace = trace_id("claude-code", one.session, one.turn)
        expected |= {root_span_id(trace), span_id(trace, "llm", f"msg_{one.turn}")}
        with started(WATCH, stdin=subprocess.DEVNULL):
            time.sleep(chance.uniform(0.0, 0.8))  # the moment of death, not a synchronisation
    assert watch_once(read_settings())
    received = {span.span_id: span.attributes for span in receiver.spans}
    assert received.keys() == expected
    for span in receiver.spans:
        assert received[span.span_id] == span.attributes


def test_a_hook_starts_the_watcher_and_the_watcher_leaves_when_idle(home, tmp_path, receiver):
    """With nothing running, the first hook event is enough for its turn to arrive; so is the next."""
    home.mkdir()
    (home / "config.toml").write_text(f'sinks = "otlp_http:{receiver.endpoint}"\n')
    hook = Path(__file__).resolve().parent.parent / "hooks" / "tracebridge_hook.py"
    env = {**os.environ, "TRACEBRIDGE_IDLE_MINUTES": "0.02"}
    transcript = str(tmp_path / "none.jsonl")
    for number, turn in enumerate((TURN, "the next"), start=1):
        for event in (
            {"hook_event_name": "UserPromptSubmit", "prompt": "hello"},
            {"hook_event_name": "Stop", "background_tasks": []},
        ):
            told = {"session_id": SESSION, "prompt_id": turn, "transcript_path": transcript}
            subprocess.run(
                [sys.executable, "-I", "-S", str(hook), "claude-code"],
                input=orjson.dumps(told | event),
                env=env,
                check=True,
            )
        wait_until(lambda number=number: len(receiver.spans) == number, "the turn at the backend")
        trace = trace_id("claude-code", SESSION, turn)
        assert receiver.spans[-1].span_id == root_span_id(trace)
        wait_until(lambda: not is_watched(home), "the idle watcher to leave")


@pytest.mark.parametrize("replaced", [False, True])
def test_a_watcher_leaves_a_home_that_is_gone(claude, home, tmp_path, replaced):
    """With a turn under way and a backend that is away: it says why, and makes nothing there."""
    claude.simple_turn()
    claude.hook(20, "UserPromptSubmit", prompt="and more", prompt_id="another")
    old = tmp_path / "old"
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with started(WATCH, env=env, **quiet) as process:
        wait_until(lambda: told_turns(home) == 1, "a turn that is told")
        if replaced:
            home.rename(old)
            home.mkdir(mode=0o700)
            (home / "watch.lock").touch()
        else:
            shutil.rmtree(home)
        _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert f"{home} was removed or replaced; its watcher leaves" in said
    assert "Traceback" not in said
    assert home.exists() == replaced
    if replaced:
        assert [path.name for path in home.iterdir()] == ["watch.lock"]
        with Store(old) as store:
            assert store.waiting() == 2


def told_turns(home: Path) -> int:
    if not (home / "store.sqlite3").exists():
        return 0
    with Store(home) as store:
        return sum(row.told for row in store.turns())


def test_resource_attributes_are_the_users(claude, receiver, monkeypatch):
    """OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME reach the backend beside what we know."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=ci,odd, team=a%2Cb")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-agents")
    claude.simple_turn()
    assert watch_once(read_settings())
    resource = receiver.spans[0].resource
    assert resource["service.name"] == "my-agents"
    assert resource["deployment.environment"] == "ci"
    assert resource["team"] == "a,b"
    assert resource["service.version"] == "2.1.329"


def test_what_a_killed_writer_left_is_swept_up(claude):
    """An old unfinished file goes; a fresh one may still be written to."""
    old, fresh = (claude.spool.new.parent / "tmp" / name for name in ("old", "fresh"))
    old.touch()
    fresh.touch()
    os.utime(old, (0, 0))
    claude.spool.drop_unfinished()
    assert (old.exists(), fresh.exists()) == (False, True)


@pytest.mark.parametrize(("sources", "patience"), [("both", 0.3), ("hooks", 2.0)])
def test_a_turn_is_told_when_nothing_more_is_to_come(claude, sources, patience):
    """Told by both sources it waits a moment; told by one it waits for the other."""
    now = [time.time_ns()]
    if sources == "both":
        claude.simple_turn()
    else:
        claude.hook(0, "UserPromptSubmit", prompt="hello")
        claude.hook(3, "Stop", last_assistant_message="done", background_tasks=[])
    watcher = Watcher(read_settings(), clock=lambda: now[0])
    watcher.step()
    now[0] += int((patience - 0.1) * SECOND)
    watcher.step()
    assert not watcher.store.is_told(TRACE)
    now[0] += int(0.2 * SECOND)
    watcher.step()
    assert watcher.store.is_told(TRACE)
    watcher.close()


def test_a_slow_look_is_no_quiet(claude):
    """On a busy machine seconds go by within a step: what came meanwhile is looked for first."""
    ticks = itertools.count(time.time_ns(), 5 * SECOND)
    claude.simple_turn()
    watcher = Watcher(read_settings(), clock=lambda: next(ticks))
    watcher.step()
    assert not watcher.store.is_told(TRACE)
    watcher.step()
    assert watcher.store.is_told(TRACE)
    watcher.close()


def test_a_turn_waits_for_what_the_gateway_saw_of_its_last_call(claude):
    """Where it saw the others: its record may come after hook and transcript have told the end."""
    now = [time.time_ns()]
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    claude.prompt_line(0, "hello")
    look = used("toolu_1", "Read")
    claude.answer_line(2, "msg_1", look, began=1, stop="tool_use")
    claude.spool.write_call(a_call(response_id="msg_1"))
    claude.answer_line(3, "msg_2", said("done"), began=2)
    claude.hook(3, "Stop", last_assistant_message="done", background_tasks=[])
    watcher = Watcher(read_settings(), clock=lambda: now[0])
    watcher.step()
    now[0] += SECOND
    watcher.step()
    assert not watcher.store.is_told(TRACE)
    claude.spool.write_call(a_call(call_id="call-2", response_id="msg_2", start_ns=at(2)))
    watcher.step()
    now[0] += SECOND // 2
    watcher.step()
    assert watcher.store.is_told(TRACE)
    watcher.close()


def test_a_background_subagent_holds_its_turn_back(claude):
    """A turn whose subagent still works is not told before it ends, or for ten minutes."""
    now = [time.time_ns()]
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    claude.hook(1, "SubagentStart", agent_id="a", agent_type="helper")
    claude.hook(3, "Stop", last_assistant_message="done")
    watcher = Watcher(read_settings(), clock=lambda: now[0])
    watcher.step()
    now[0] += 60 * SECOND
    watcher.step()
    assert not watcher.store.is_told(TRACE)
    claude.hook(70, "SubagentStop", agent_id="a", agent_type="helper")
    watcher.step()
    now[0] += 3 * SECOND
    watcher.step()
    assert watcher.store.is_told(TRACE)
    watcher.close()


def test_two_at_work_share_what_each_took_in(claude, receiver):
    """A turn of which one process took in the beginning and another the end is told as a whole."""
    first, second = Watcher(read_settings()), Watcher(read_settings())
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    claude.prompt_line(0, "hello")
    first.step()
    claude.answer_line(2, "msg_1", said("done"), began=1)
    claude.hook(3, "Stop", last_assistant_message="done", background_tasks=[])
    second.step()
    first.step(settle_now=True)
    second.step(settle_now=True)
    first.close()
    second.close()
    assert watch_once(read_settings())
    assert tree_of(receiver) == {
        "invoke_agent claude-code": None,
        "chat claude-opus-5-5": "invoke_agent claude-code",
    }
    assert receiver.spans[-1].attributes["tracebridge.turn.outcome"] == "completed"


def test_a_turn_taken_in_and_not_put_together_is_found_again(claude, receiver, monkeypatch):
    """Killed between taking in and putting together, the next watcher knows whose turn it is."""
    claude.simple_turn()
    watcher = Watcher(read_settings())
    monkeypatch.setattr(watcher, "_take_in_transcripts", lambda *_: exit_of_a_process())
    with pytest.raises(SystemExit):
        watcher.step()
    watcher.close()
    assert claude.spool.depth() == 0
    assert watch_once(read_settings())
    assert len(receiver.spans) == 2


def exit_of_a_process():
    raise SystemExit


def test_a_clock_that_is_set_back_does_not_hold_a_turn(claude):
    """A turn that is over is told as soon as it would have been; a sink is tried again."""
    now = [time.time_ns() + 365 * 86_400 * SECOND]
    claude.simple_turn()
    watcher = Watcher(read_settings(), clock=lambda: now[0])
    watcher.step()
    watcher.store.postpone("otlp", now[0] + 60 * SECOND, "down")
    now[0] -= 365 * 86_400 * SECOND
    watcher.step()
    now[0] += SECOND
    watcher.step()
    assert watcher.store.is_told(TRACE)
    with watcher.store.transaction():
        offered = [("a" * 16, b"x")]
        watcher.store.offer(TRACE, offered, (), ["otlp"])
    assert len(watcher.store.due("otlp", now[0], 10)) == 1
    watcher.close()


def broken(*_: object) -> None:
    raise RecursionError


def test_an_event_that_breaks_its_adapter_stops_nobody(claude, receiver, home, monkeypatch):
    """It is set aside and counted, and the session beside it arrives."""
    claude.simple_turn()
    parse = agent("claude-code").parse_hook
    monkeypatch.setattr(
        agent("claude-code"),
        "parse_hook",
        lambda event: broken() if b"poison" in event.payload else parse(event),
    )
    claude.raw_hook(at(0), b"poison")
    assert watch_once(read_settings())
    assert len(receiver.spans) == 2
    assert len(list((home / "spool" / "bad").iterdir())) == 1
    with Store(home) as store:
        assert store.notes()["hook event not understood, set aside; see watch.log"] == 1


def test_a_transcript_that_breaks_its_adapter_stops_nobody(claude, receiver, monkeypatch):
    """The turn is told by its hooks alone, and `status` says why."""
    claude.simple_turn()
    monkeypatch.setattr(agent("claude-code"), "read_transcript", broken)
    assert watch_once(read_settings())
    assert [span.name for span in receiver.spans] == ["invoke_agent claude-code"]
    with Store(claude.spool.new.parents[1]) as store:
        assert any("transcript not understood" in note for note in store.notes())


def test_a_call_told_on_a_guess_is_never_told_twice(claude, receiver):
    """Told under one turn by its time alone, it stays there, whatever the transcript says later."""
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    claude.hook(9, "Stop", last_assistant_message="done", background_tasks=[])
    nameless = CallIdentity(agent="claude-code", session_id=SESSION)
    claude.spool.write_call(a_call(identity=nameless, response_id="msg_guess", start_ns=at(3)))
    assert watch_once(read_settings())
    (guess,) = (span for span in receiver.spans if span.name.startswith("chat"))
    assert guess.attributes["tracebridge.link.confidence"] == "inferred"
    claude.turn = "another-turn"
    claude.hook(3, "UserPromptSubmit", prompt="and this")
    claude.prompt_line(3, "and this")
    claude.answer_line(4, "msg_guess", said("done"), began=3)
    claude.hook(5, "Stop", last_assistant_message="done", background_tasks=[])
    assert watch_once(read_settings())
    assert len([span for span in receiver.spans if span.name.startswith("chat")]) == 1
    roots = [span for span in receiver.spans if not span.parent_span_id]
    assert len(roots) == 2


def test_a_call_told_alone_is_never_told_twice(claude, receiver):
    """An orphan that went out stays one, also for the next watcher, when its turn is known at last."""
    claude.spool.write_call(a_call(response_id=f"msg_{TURN}"))
    assert watch_once(read_settings(), close_open=True)
    (orphan,) = receiver.spans
    claude.simple_turn()
    assert watch_once(read_settings())
    assert [span.name for span in receiver.spans if span.name.startswith("chat")] == [orphan.name]
    assert len(receiver.spans) == 2


def test_a_chat_is_told_while_its_turn_runs(claude, receiver):
    """What no later fact can change goes out at once; the rest follows, and the backend has all."""
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    claude.prompt_line(0, "hello")
    claude.answer_line(
        2, "msg_1", said("I look"), used("toolu_1", "Read"), began=1, stop="tool_use"
    )
    claude.spool.write_call(
        a_call(
            response_id="msg_1",
            stop_reason="tool_use",
            usage=Usage(input_tokens=115, output_tokens=20),
            attempt=1,
            blocks=2,
        )
    )
    assert watch_once(read_settings())
    (early,) = receiver.spans
    assert (early.trace_id, early.parent_span_id) == (TRACE, root_span_id(TRACE))
    claude.hook(3, "Stop", last_assistant_message="done", background_tasks=[])
    assert watch_once(read_settings())
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans) == 3
    assert receiver.spans[-1].attributes["tracebridge.turn.calls"] == 1
