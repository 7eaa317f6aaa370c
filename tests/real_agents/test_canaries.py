"""Secrets planted wherever a real agent can see them: none is found on disk, wire or in a log."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import codex_scenarios
import gemini_scenarios
import opencode_scenarios
import pytest
import scenarios
from judge import CLAUDE_CODE, Kind, trial
from test_codex_cli import CODEX_CLI
from test_gemini_cli import GEMINI_CLI
from test_opencode import OPENCODE

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
# On each request to a model; no transcript tells of it.
HEADER = "c4n4ry-of-the-header-0123456789"
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


def run(agent: Any, **env: str) -> Any:
    agent.env = {**agent.env, "SOME_SERVICE_TOKEN": CANARIES["environment"], **env}
    return agent.run(PROMPT)


def claude(stage: Any) -> scenarios.Played:
    stage.model.script(script(scenarios._bash(COMMAND)))
    done = run(stage.claude(), ANTHROPIC_CUSTOM_HEADERS=f"X-Canary: {HEADER}")
    return scenarios.Played((done.exit_code,), (done.session_id,))


def codex(stage: Any) -> codex_scenarios.Played:
    stage.model.script(script(codex_scenarios._shell(COMMAND)))
    done = run(stage.codex())
    return codex_scenarios.Played((done.exit_code,), (done.session_id,))


def gemini(stage: Any) -> gemini_scenarios.Played:
    stage.model.script(script(gemini_scenarios._shell(COMMAND)))
    return gemini_scenarios._played(
        run(stage.gemini(), GEMINI_CLI_CUSTOM_HEADERS=f"X-Canary: {HEADER}")
    )


def opencode(stage: Any) -> opencode_scenarios.Played:
    stage.model.script(script(opencode_scenarios._bash(COMMAND)))
    agent = stage.opencode()
    return opencode_scenarios._played(agent, run(agent))


KINDS = {
    "claude-code": replace(CLAUDE_CODE, scenarios={"canaries": claude}),
    "codex-cli": replace(CODEX_CLI, scenarios={"canaries": codex}),
    "gemini-cli": replace(GEMINI_CLI, scenarios={"canaries": gemini}),
    "opencode": replace(OPENCODE, scenarios={"canaries": opencode}),
}
# The gateway passes these on.
WITH_HEADER = {"claude-code", "gemini-cli"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("content", ["redacted", "full"])
def test_no_planted_secret_is_found(kind: Kind, content, tmp_path, monkeypatch):
    """Not in spool, store or logs, not at the backend, not in what the commands print."""
    monkeypatch.setenv("TRACEBRIDGE_CONTENT", content)
    with trial("canaries", tmp_path, monkeypatch, kind=kind) as played:
        assert played.outcomes == ["completed"]
        told = b"".join(
            # OpenCode's last words stand in its database's log.
            path.read_bytes()
            for path in played.workdir.glob(f"home/{kind.transcripts}*")
        )
        for place, canary in CANARIES.items():
            assert canary.encode() in told, f"the agent itself has not seen the one of: {place}"
        sent = {value for call in played.truth for value in call.headers.values()}
        assert (HEADER in sent) == (kind.slug in WITH_HEADER)
        keys = {**CANARIES, "API key": kind.api_key, "header": HEADER}
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
