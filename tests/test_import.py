"""Past sessions: found where the agents keep them, and told as if they had been traced live."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from claude_files import Claude
from click.testing import CliRunner
from recordings import PLACES, lay_out, recordings, spool_hooks

from tracebridge import imports, semconv
from tracebridge.agents import agent, agents
from tracebridge.cli import main
from tracebridge.settings import read_settings
from tracebridge.store import Store
from tracebridge.testing.receiver import Receiver
from tracebridge.watch import watch_once
from tracebridge.watcher import Watcher

RECORDINGS = recordings()
# What only hooks tell, with the reason; by type of span. All else is equal.
WHOLE_SPANS = {"permission": "no transcript tells that somebody was asked"}
FIELDS = {
    "a transcript has the times of its lines, hooks those of the things": {
        *((kind, "start_ns") for kind in ("turn", "tool", "edit", "subagent", "compaction")),
        *((kind, "end_ns") for kind in ("turn", "tool", "edit", "subagent", "compaction")),
        # The times at which something was said meanwhile.
        ("turn", "events"),
        ("tool", semconv.TOOL_DURATION_MS),
    },
    "no transcript tells the mode": {("turn", semconv.PERMISSION_MODE)},
    "nor who began a compaction": {("compaction", semconv.COMPACTION_TRIGGER)},
    "agents word arguments and results differently here and there": {
        ("tool", semconv.TOOL_ARGUMENTS),
        ("tool", semconv.OI_INPUT),
        ("tool", semconv.TOOL_RESULT),
        ("tool", semconv.OI_OUTPUT),
        ("tool", semconv.ERROR_TYPE),
    },
    "of a process that was stopped, only we know that it ended": {
        ("turn", semconv.TURN_OUTCOME),
        ("tool", semconv.END_UNKNOWN),
    },
    "Gemini CLI's chat files do not tell the folder, so paths stay whole": {
        ("turn", semconv.CWD),
        ("edit", semconv.CODE_FILE_PATH),
        ("edit", "name"),
    },
    "OpenCode's database does not tell of attempts that failed": {
        ("turn", semconv.TURN_CALLS),
        ("turn", semconv.TURN_FAILED_CALLS),
    },
}
UNAVOIDABLE = set().union(*FIELDS.values())
# What is so in one recording only.
FIELDS_OF = {
    # The turn itself asks no model, and only a hook tells which one was set.
    "codex-cli/review": {("turn", semconv.REQUEST_MODEL)},
    # When history began to be summed up only a hook tells.
    "gemini-cli/compact": {("compaction", semconv.START_UNKNOWN)},
}
# Recordings of which spans are missing, and why.
INCOMPLETE = {
    "claude-code/no_persistence": "the session kept no transcript",
    "claude-code/sigkill_tool": "killed before anything was written",
    "gemini-cli/two_sessions": "two sessions begun at once in one folder spoil a chat file",
    "opencode/retry_429": "the database does not tell of attempts that failed",
}


@pytest.fixture
def user_home(tmp_path) -> Path:
    """Return the home that the test runs in."""
    return tmp_path / "user-home"


def stored(home: Path):
    with Store(home) as store:
        return {span.span_id: span for row in store.turns() for span in store.spans(row.trace_id)}


def take_in(home, monkeypatch, *, local_only=True, **which):
    monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
    found = imports.find(agents().values(), Path.home(), **which)
    return imports.take_in(read_settings(), found, lambda: None, local_only=local_only)


def facts(span):
    own = {name: getattr(span, name) for name in ("parent_span_id", "name", "kind", "start_ns")}
    more = {name: getattr(span, name) for name in ("end_ns", "status", "status_message", "events")}
    return own | more | dict(span.attributes)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda r: f"{r.parent.name}-{r.name}")
def test_what_is_imported_is_what_live_tracing_gave(recording, tmp_path, user_home, monkeypatch):
    """Span for span, attribute for attribute, but for what only hooks can tell."""
    lay_out(recording, user_home)
    live_home, imported_home = tmp_path / "live", tmp_path / "imported"
    spool_hooks(recording, user_home, live_home / "spool" / "new", {})
    monkeypatch.setenv("TRACEBRIDGE_HOME", str(live_home))
    assert watch_once(read_settings(), close_open=True)
    report = take_in(imported_home, monkeypatch)
    assert report.problems == []
    live, imported = stored(live_home), stored(imported_home)
    assert live
    assert imported.keys() <= live.keys()
    missing = [live[span_id] for span_id in live.keys() - imported.keys()]
    name = f"{recording.parent.name}/{recording.name}"
    if name in INCOMPLETE:
        assert missing
    else:
        assert {span.attributes[semconv.SPAN_TYPE] for span in missing} <= WHOLE_SPANS.keys()
    for span_id, span in imported.items():
        kind = span.attributes[semconv.SPAN_TYPE]
        one, other = facts(live[span_id]), facts(span)
        differing = {(kind, each) for each in one | other if one.get(each) != other.get(each)}
        known = UNAVOIDABLE | FIELDS_OF.get(name, set())
        assert differing <= known, f"{span.name} of {recording.name}"


def test_every_reason_is_needed():
    """The table of differences names agents' recordings that exist."""
    names = {f"{recording.parent.name}/{recording.name}" for recording in RECORDINGS}
    assert INCOMPLETE.keys() | FIELDS_OF.keys() <= names
    assert len(RECORDINGS) >= 60


def one_of_each(user_home, name="tools"):
    for recording in RECORDINGS:
        if recording.name == name:
            lay_out(recording, user_home)


def run(*arguments, **env):
    """Run the command in this process: to start one takes ten times as long as to import."""
    return CliRunner().invoke(main, arguments, env=env)


def run_apart(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tracebridge", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_all_four_agents_are_found(user_home):
    """Each session once, with its project and its time; of subagents' files none."""
    one_of_each(user_home)
    # In each another session, with files of subagents beside it.
    with_subagents = [
        recording
        for recording in RECORDINGS
        if recording.name in ("subagent", "subagents") and recording.parent.name != "opencode"
    ]
    for recording in with_subagents:
        lay_out(recording, user_home)
    found = imports.find(agents().values(), user_home)
    assert found.problems == []
    told = [(which.SLUG, past.session_id) for which, past in found.sessions]
    assert len(told) == len(set(told)) == 4 + len(with_subagents)
    assert {slug for slug, _ in told} == {*PLACES}
    for which, past in found.sessions:
        expected = "project" if which.SLUG == "gemini-cli" else "/home/user/project"
        assert past.project == expected
        assert past.changed_ns > 0
    assert [p.changed_ns for _, p in found.sessions] == sorted(
        p.changed_ns for _, p in found.sessions
    )


def test_dry_run_counts_and_takes_nothing_in(user_home, home):
    """What it counts is what the import then takes in; a second import finds nothing new."""
    one_of_each(user_home)
    dry = json.loads(run("import", "--dry-run", "--json").stdout)
    assert set(dry["counts"]) == {*PLACES}
    assert stored(home) == {}
    real = json.loads(run_apart("import", "--json").stdout)
    assert real["counts"] == dry["counts"]
    assert all(each["new_turns"] >= 1 for each in real["counts"].values())
    again = run("import", "claude", "codex-cli")
    assert "claude-code  1 session taken in, 0 new turns (1 in all)" in again.stdout
    assert "gemini" not in again.stdout


def test_a_part_can_be_asked_for(user_home, home, monkeypatch):
    """By time of the last change, and by project as path or name."""
    one_of_each(user_home)
    now = time.time_ns()
    assert take_in(home, monkeypatch, since_ns=now + 10**12).counts == {}
    assert set(take_in(home, monkeypatch, project="elsewhere").counts) == set()
    by_path = take_in(home, monkeypatch, project="/home/user/project")
    assert set(by_path.counts) == {*PLACES}
    nobody = run("import", "--project", "elsewhere")
    assert "no past sessions found" in nobody.stdout
    assert nobody.exit_code == 0
    assert run("import", "--since", "soon").exit_code == 2


def test_folders_that_are_not_traced_are_not_imported_either(user_home, home):
    """Of all four agents, by path or by the name that the agent keeps."""
    one_of_each(user_home)
    home.mkdir()
    (home / "config.toml").write_text('untraced = ["/home/user/project"]')
    done = run("import")
    assert done.exit_code == 0
    assert "no past sessions found" in done.stdout
    assert stored(home) == {}


def test_what_will_not_be_kept_is_said(user_home, home):
    """Sessions older than `retention_days` are sent, and then forgotten here."""
    one_of_each(user_home)
    (path,) = (user_home / ".claude" / "projects").glob("*/*.jsonl")
    os.utime(path, (0, 0))
    done = run("import", "claude-code", "--local-only")
    assert "1 of them ended longer ago than turns are kept here" in done.stdout
    assert "retention_days" in done.stdout
    assert stored(home)
    assert "longer ago" not in run("import", "codex-cli", "--local-only").stdout


def test_imported_turns_go_to_the_sinks_once(user_home, home):
    """Like those traced live; not at all with --local-only, and on demand afterwards."""
    one_of_each(user_home)
    with Receiver() as receiver:
        sink = f"otlp_http:{receiver.endpoint}"
        assert run("import", "claude-code", "--local-only", TRACEBRIDGE_SINKS=sink).exit_code == 0
        assert receiver.spans == []
        done = run("import", "--sink", sink)
        assert done.exit_code == 0, done.stderr
        assert receiver.endpoint in done.stdout
        assert "spans sent" in done.stdout
        sent = {span.span_id for span in receiver.spans}
        local = {
            span_id
            for span_id, span in stored(home).items()
            if span.attributes.get(semconv.AGENT_NAME) == "claude-code"
        }
        assert local
        assert not local & sent
        before = len(receiver.spans)
        assert run("import", "--sink", sink).exit_code == 0
        assert len(receiver.spans) == before
        run("export", "--agent", "claude-code", "--sink", sink)
        assert local <= {span.span_id for span in receiver.spans}


def test_local_only_is_about_the_past_alone(user_home, home):
    """What was traced live, in the same session or another, goes to the sinks all the same."""
    one_of_each(user_home)
    (codex,) = [r for r in RECORDINGS if (r.parent.name, r.name) == ("codex-cli", "tools")]
    spool_hooks(codex, user_home, home / "spool" / "new", {})
    with Receiver() as receiver:
        sink = f"otlp_http:{receiver.endpoint}"
        done = run("import", "--local-only", TRACEBRIDGE_SINKS=sink)
        assert done.exit_code == 0, done.stderr
        assert run("watch", "--once", "--close-open", TRACEBRIDGE_SINKS=sink).exit_code == 0
        sent = {span.attributes.get(semconv.AGENT_NAME) for span in receiver.spans} - {None}
        assert sent == {"codex-cli"}


def test_local_only_holds_for_who_tells_the_rest(user_home, home):
    """Killed before anything was told, or open until later: a watcher sends nothing of it."""
    (recording,) = [r for r in RECORDINGS if (r.parent.name, r.name) == ("claude-code", "simple")]
    lay_out(recording, user_home)
    (path,) = (user_home / ".claude" / "projects").glob("*/*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    asked = [n for n, line in enumerate(lines) if json.loads(line).get("type") == "user"]
    path.write_bytes(b"".join(lines[: asked[0] + 1]))
    with Receiver() as receiver:
        sink = f"otlp_http:{receiver.endpoint}"
        assert run("import", "--local-only", TRACEBRIDGE_SINKS=sink).exit_code == 0
        path.write_bytes(b"".join(lines))
        assert run("watch", "--once", "--close-open", TRACEBRIDGE_SINKS=sink).exit_code == 0
        with Store(home) as store:
            (row,) = store.turns()
        assert row.told
        assert receiver.spans == []


KILLED = """
import os, signal, sys
from pathlib import Path
from tracebridge import imports
from tracebridge.agents import agents
from tracebridge.settings import read_settings
from tracebridge.store import tables
left = int(sys.argv[1])
tables.GATHERED_S = imports.ALONE_S = float(sys.argv[2])
def done():
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
found = imports.find(agents().values(), Path.home())
imports.take_in(read_settings(), found, done, local_only=True)
"""


def test_an_import_that_was_killed_goes_on(user_home, home, tmp_path, monkeypatch):
    """Killed in any of its sessions, with much or little on the disk, it ends as one run does."""
    for recording in RECORDINGS:
        if recording.parent.name in ("claude-code", "codex-cli"):
            lay_out(recording, user_home)
    kept = []
    # After each session a commit, or none at all.
    for sessions, alone_s in ((1, 0), (9, 0), (23, 3600), (5, 0.5)):
        words = [sys.executable, "-c", KILLED, str(sessions), str(alone_s)]
        assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
        with Store(home) as store:
            kept.append(len(store.turns()))
    assert kept[0] < kept[1] == kept[2] <= kept[3]
    take_in(home, monkeypatch)
    whole = tmp_path / "whole"
    take_in(whole, monkeypatch)
    assert stored(home) == stored(whole)


def test_live_tracing_goes_on_meanwhile(user_home, home, monkeypatch):
    """A watcher gets its turn between the sessions, however many there are."""
    one_of_each(user_home)
    monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
    found = imports.find(agents().values(), user_home)
    take_in(home, monkeypatch)
    claude = Claude(home, user_home / ".claude")
    rounds = []

    def live():
        watcher = Watcher(read_settings())
        rounds.append(watcher.step())
        watcher.close()

    watching = threading.Thread(target=live)

    class EnoughError(Exception):
        pass

    def done():
        if watching.ident is None:
            claude.hook(0, "UserPromptSubmit", prompt="hello")
            watching.start()
        if not watching.is_alive():
            raise EnoughError

    again = imports.Found(found.sessions * 100_000)
    with pytest.raises(EnoughError):
        imports.take_in(read_settings(), again, done, local_only=True)
    watching.join()
    assert rounds == [True]


def test_what_is_open_is_not_ended_by_an_import_beside_it(user_home, home, monkeypatch):
    """A turn that began after the import did is not as old as what is imported."""
    one_of_each(user_home)
    monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
    known = [each for slug, each in agents().items() if slug != "opencode"]
    old = time.time() - 7 * 86_400
    for path in user_home.rglob("*"):
        os.utime(path, (old, old))
    first, *rest = imports.find(known, user_home).sessions
    importer, live = Watcher(read_settings()), Watcher(read_settings())
    with importer.importing():
        importer.import_session(*first)
    claude = Claude(home, user_home / ".claude")
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    live.step()
    with importer.importing():
        for which, past in rest:
            importer.import_session(which, past)
    states = {row.session_id: row.state for row in live.store.turns()}
    importer.close()
    live.close()
    assert states.pop(claude.session) == "open"
    assert "open" not in states.values()


def test_a_session_that_still_runs_stays_open(user_home, home, monkeypatch):
    """What has no end yet is not ended by an import; a day later it is over."""
    (recording,) = [r for r in RECORDINGS if (r.parent.name, r.name) == ("claude-code", "simple")]
    lay_out(recording, user_home)
    (path,) = (user_home / ".claude" / "projects").glob("*/*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    asked = [n for n, line in enumerate(lines) if json.loads(line).get("type") == "user"]
    path.write_bytes(b"".join(lines[: asked[0] + 1]))
    take_in(home, monkeypatch)
    with Store(home) as store:
        (row,) = store.turns()
    assert (row.state, row.told) == ("open", False)
    day_ago = time.time() - 25 * 3600
    os.utime(path, (day_ago, day_ago))
    take_in(home, monkeypatch)
    with Store(home) as store:
        (row,) = store.turns()
    assert (row.state, row.outcome, row.told) == ("abandoned", "abandoned", True)


def test_old_sessions_are_told_one_by_one(user_home, home, monkeypatch):
    """None of them is waited for, so that the next ones need not look at it again."""
    monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
    for recording in RECORDINGS:
        if recording.name == "tools":
            lay_out(recording, user_home)
    old = time.time() - 7 * 86_400
    for path in user_home.rglob("*"):
        os.utime(path, (old, old))
    # In a database each session has a time of its own.
    known = [each for slug, each in agents().items() if slug != "opencode"]
    found = imports.find(known, user_home)
    assert len(found.sessions) == len(known)
    watcher = Watcher(read_settings())
    for slug, past in found.sessions:
        with watcher.importing():
            watcher.import_session(slug, past, local_only=True)
        assert not watcher.busy
    watcher.close()
    assert len(stored(home)) > len(known)


def test_what_cannot_be_read_is_named_and_the_rest_taken_in(user_home, home):
    """Garbage, cut lines, huge numbers, a broken database, a folder in place of a file."""
    one_of_each(user_home)
    projects = user_home / ".claude" / "projects" / "x"
    projects.mkdir()
    (projects / "garbage.jsonl").write_bytes(b"\xff\xfe{]\n" * 10)
    (projects / "empty.jsonl").touch()
    (projects / "cut.jsonl").write_text('{"type":"user","cwd":17,"sessionId":"cut"')
    (projects / "huge.jsonl").write_text(f'{{"type":"user","timestamp":1{"0" * 400}}}\n')
    (projects / "folder.jsonl").mkdir()
    codex = user_home / ".codex" / "sessions" / "2026" / "11" / "21"
    (codex / "rollout-x.jsonl").write_text('{"payload":{"id":[1]}}\n')
    (codex / "rollout-folder.jsonl").mkdir()
    chats = user_home / ".gemini" / "tmp" / "project" / "chats"
    (chats / "session-2026-11-21T05-55-00000000.jsonl").write_text("[1, 2")
    (chats / "session-folder.jsonl").mkdir()
    (user_home / ".local/share/opencode/opencode.db").write_bytes(b"no database" * 1000)
    done = run_apart("import", "--json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "opencode.db" in done.stderr
    assert done.stderr.count("folder.jsonl: ") == 3
    counts = json.loads(done.stdout)["counts"]
    assert {slug for slug, one in counts.items() if one["new_turns"]} == {
        *PLACES.keys() - {"opencode"}
    }
    assert len(stored(home)) > 20


def test_transcripts_can_be_given_by_path(user_home, tmp_path):
    """Also from elsewhere than where the agent keeps them."""
    elsewhere = tmp_path / "elsewhere"
    for recording in RECORDINGS:
        if recording.name == "tools":
            lay_out(recording, elsewhere)
    for slug, pattern in (
        ("claude-code", ".claude/projects/*/*.jsonl"),
        ("codex-cli", ".codex/sessions/*/*/*/*.jsonl"),
        ("gemini-cli", ".gemini/tmp/*/chats/*.jsonl"),
        ("opencode", ".local/share/opencode/opencode.db"),
    ):
        paths = [str(path) for path in elsewhere.glob(pattern)]
        assert paths
        done = run("import", "--agent", slug, *paths)
        assert done.exit_code == 0, done.stderr
        assert "1 new turns (1 in all)" in done.stdout
    assert list(user_home.iterdir()) == []


@pytest.mark.parametrize("slug", PLACES)
def test_nothing_to_find_is_no_error(slug, user_home):
    """For somebody who never used the agent."""
    assert list(agent(slug).past_sessions(user_home)) == []
