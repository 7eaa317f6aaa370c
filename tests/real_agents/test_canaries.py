"""Secrets planted wherever a real agent can see them: none is found on disk, wire or in a log."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from codex_scenarios import Played as CodexPlayed
from codex_scenarios import _shell
from judge import CLAUDE_CODE, Kind, trial
from scenarios import Played as ClaudePlayed
from scenarios import _bash
from test_codex_cli import CODEX_CLI

from tracebridge.testing.scripted_model import Reply, Text, Thinking, ToolUse

pytestmark = pytest.mark.real_agent

# Each stands in one place; no form of secret twice.
CANARIES = {
    "environment": "c4n4ry-of-the-environment-77",
    "file": "MIIEpAIBAAKCAQEAc4n4ryOfTheFileZiAMfQyuvBjM9OiZ1BjP5CE6wKwRlJb1c",
    "settings": "c4n4ry.of.dotenv",
    "tool output": "eyJhbGciOiJIUzI1NiJ9.eyJjNG4icnkiOiJ0b29sIn0.c4n4ryToolOutputXg",
    "prompt": "ghp_c4n4ryOfThePrompt0123456789abcdef012",
    "thinking": "wJalrXUtnFEMIc4n4ryOfTheThoughtRfiCYKEY12",
    "answer": "xoxb-123456789012-123456789012-c4n4ryAnswer012345678901",
    "written file": "sk-proj-c4n4ryOfTheWrittenFile1234567890",
    "URL": "c4n4ry-p4ssw0rd",
    "query": "c4n4ryquery0123456789",
    "git remote": "glpat-c4n4ryRemote12345678",
    "command line": "c4n4ry-bearer-0123456789-abcdef",
}
COMMAND = """cat > .env <<'END'
DATABASE_PASSWORD={settings}
END
cat > key.pem <<'END'
-----BEGIN RSA PRIVATE KEY-----
{file}
-----END RSA PRIVATE KEY-----
END
env; cat .env key.pem; printf 'the token is %s\\n' {tool_output}
git init -q . ; git remote add origin https://oauth2:{git_remote}@gitlab.example/x.git; git remote -v
echo curl https://somebody:{url}@host.example/x 'https://x.example/?access_token={query}&a=1' \
    -H 'Authorization: Bearer {command_line}'
echo 'OPENAI_API_KEY={written_file}' > client.py; cat client.py
""".format(**{name.lower().replace(" ", "_"): canary for name, canary in CANARIES.items()})
PROMPT = f"please deploy it with {CANARIES['prompt']}"


def script(command: ToolUse) -> dict[str, Sequence[Reply]]:
    thought = f"aws_secret_access_key = {CANARIES['thinking']}"
    answer = f"Posted with {CANARIES['answer']}."
    return {PROMPT[:20]: [Reply([Thinking(thought), command]), Reply([Text(answer)])]}


def claude(stage: Any) -> ClaudePlayed:
    stage.model.script(script(_bash(COMMAND)))
    agent = stage.claude()
    agent.env = {**agent.env, "SOME_SERVICE_TOKEN": CANARIES["environment"]}
    done = agent.run(PROMPT)
    return ClaudePlayed((done.exit_code,), (done.session_id,))


def codex(stage: Any) -> CodexPlayed:
    stage.model.script(script(_shell(COMMAND)))
    agent = stage.codex()
    agent.env = {**agent.env, "SOME_SERVICE_TOKEN": CANARIES["environment"]}
    done = agent.run(PROMPT)
    return CodexPlayed((done.exit_code,), (done.session_id,))


KINDS = {
    "claude-code": replace(CLAUDE_CODE, scenarios={"canaries": claude}),
    "codex-cli": replace(CODEX_CLI, scenarios={"canaries": codex}),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("content", ["redacted", "full"])
def test_no_planted_secret_is_found(kind: Kind, content, tmp_path, monkeypatch):
    """Not in spool, store or logs, not at the backend, not in what the commands print."""
    monkeypatch.setenv("TRACEBRIDGE_CONTENT", content)
    with trial("canaries", tmp_path, monkeypatch, kind=kind) as played:
        assert played.outcomes == ["completed"]
        told = b"".join(
            path.read_bytes() for path in played.workdir.glob(f"home/{kind.transcripts}")
        )
        for place, canary in CANARIES.items():
            assert canary.encode() in told, f"the agent itself has not seen the one of: {place}"
        keys = {**CANARIES, "API key": kind.api_key}
        printed = b"".join(said_by(*words) for words in (["status", "--json"], ["export"]))
        for place, canary in keys.items():
            for path in played.home.rglob("*"):
                assert not path.is_file() or canary.encode() not in path.read_bytes(), (place, path)
            for request in played.receiver.requests:
                assert canary.encode() not in request.body, place
            assert canary.encode() not in printed, place


def said_by(*words: str) -> bytes:
    command = [sys.executable, "-m", "tracebridge", *words]
    done = subprocess.run(command, capture_output=True, check=True)
    return done.stdout + done.stderr
