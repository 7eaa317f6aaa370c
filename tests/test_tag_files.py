"""Files of user and project say who the work is for, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tracebridge.agents import agent, agents
from tracebridge.model import Tags
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.tag_files import project_of, read_tags
from tracebridge.watcher import Watcher

CLAUDE = agent("claude-code")


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    (folder / ".git").mkdir(parents=True)
    return folder


def write(path, **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tags))


def test_the_nearer_file_wins(project):
    """User, then the project: Claude Code's settings, its common file, the agent's own; then below."""
    home = Path.home()
    write(home / ".claude" / "respan.json", customer_id="1", a="1", b="1", c="1", d="1")
    write(project / ".claude" / "settings.json", telemetry={"projectTag": "p"})
    write(project / ".respan.json", customer_id="2", b="2", c="2", projectTag="q")
    write(project / ".claude" / "respan.json", c="3", d="3", span_name="s")
    write(project / "src" / ".claude" / "respan.json", d="4")
    tags, problems = read_tags(CLAUDE, project / "src" / "deep", home)
    assert problems == []
    metadata = {"a": "1", "b": "2", "c": "3", "d": "4", "projectTag": "q"}
    assert tags == Tags(customer_id="2", span_name="s", metadata=tuple(sorted(metadata.items())))


@pytest.mark.parametrize(
    ("slug", "user_file", "project_file"),
    [
        ("claude-code", ".claude/respan.json", ".claude/respan.json"),
        ("codex-cli", ".codex/respan.json", ".codex/respan.json"),
        ("gemini-cli", ".gemini/respan.json", ".gemini/respan.json"),
        ("opencode", ".config/opencode/respan.json", ".opencode/respan.json"),
    ],
)
def test_each_agent_has_its_own_file(slug, user_file, project_file, project):
    """Where Respan's own hooks look for it; no other agent's counts."""
    write(Path.home() / user_file, a=1)
    write(project / project_file, b=2)
    for each in agents().values():
        tags, _ = read_tags(each, project, Path.home())
        assert (tags is not None) is (slug == each.SLUG)
        if tags is not None:
            assert dict(tags.metadata) == {"a": "1", "b": "2"}


def test_a_project_is_a_repository_or_the_folder_itself(project, tmp_path):
    """Never a folder above both: anybody may write to /tmp."""
    home = tmp_path / "home"
    (home / ".git").mkdir(parents=True)
    assert project_of(project / "a" / "b", home) == project
    assert project_of(tmp_path / "x", home) == tmp_path / "x"
    assert project_of(home / "work", home) == home / "work"
    assert project_of(Path("/"), home) == Path("/")


@pytest.mark.parametrize("what", ["link", "linked folder", "pipe", "folder", "long", "garbage"])
def test_a_file_that_is_none_is_passed_over_and_said(what, project, tmp_path):
    """The rest counts; nobody waits for the other end of a pipe, or reads what lies elsewhere."""
    elsewhere = tmp_path / "credentials.json"
    write(elsewhere, apiKey="secret")
    path = project / ".claude" / "respan.json"
    path.parent.mkdir()
    if what == "link":
        path.symlink_to(elsewhere)
    elif what == "linked folder":
        path.parent.rmdir()
        write(tmp_path / "other" / "respan.json", apiKey="secret")
        path.parent.symlink_to(tmp_path / "other")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "long":
        path.write_text('{"a": "' + "x" * 1_000_000 + '"}')
    else:
        path.write_bytes(b"\xff{")
    write(project / ".respan.json", ours=1)
    tags, (problem,) = read_tags(CLAUDE, project, Path.home())
    assert tags == Tags(metadata=(("ours", "1"),))
    assert str(path) in problem


def test_tags_of_files_stand_on_the_turn_and_the_environments_win(project, home, tmp_path):
    """Of a turn that hooks told, with metadata of both."""
    write(project / ".respan.json", customer_id="file", project_id="p", team="blue", tier="1")
    spool = Spool(home)
    spool.create()
    payload = {
        "session_id": "s",
        "prompt_id": "p1",
        "cwd": str(project),
        "hook_event_name": "UserPromptSubmit",
        "prompt": "hi",
    }
    env = "env.RESPAN_CUSTOMER_ID=env\0env.RESPAN_METADATA=" + '{"team": "red"}'
    head = f"format=1\0kind=hook\0agent=claude-code\0time_ns=1000000000\0{env}\0\0"
    (spool.new / "1.event").write_bytes(head.encode() + json.dumps(payload).encode())
    watcher = Watcher(read_settings())
    watcher.step()
    (turn,) = watcher.store.turns()
    (root,) = watcher.store.spans(turn.trace_id)
    watcher.close()
    assert root.attributes["user.id"] == "env"
    assert json.loads(root.attributes["metadata"]) == {"team": "red", "tier": "1"}
    shutil.rmtree(tmp_path / "project")


def test_tags_of_files_stand_on_turns_that_transcripts_told(project, tmp_path):
    """No hook told of them, and so no environment."""
    write(project / ".codex" / "respan.json", customer_id="file", team="blue")
    recording = Path(__file__).parent / "agents" / "codex-cli" / "simple" / "transcripts"
    (source,) = recording.rglob("*.jsonl")
    rollout = tmp_path / source.name
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    for line in lines:
        if "cwd" in line.get("payload", {}):
            line["payload"]["cwd"] = str(project)
    rollout.write_text("".join(json.dumps(line) + "\n" for line in lines))
    watcher = Watcher(read_settings())
    watcher.import_transcript(agent("codex-cli"), rollout)
    watcher.step(settle_now=True)
    (turn,) = watcher.store.turns()
    spans = watcher.store.spans(turn.trace_id)
    watcher.close()
    assert {span.attributes["user.id"] for span in spans} == {"file"}
