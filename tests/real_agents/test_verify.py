"""`tracebridge verify` and `doctor` on the real binaries: the proof, and each joint broken once."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from beside import started
from claude import ClaudeCode
from codex import CodexCli
from gemini import MODEL as GEMINI_MODEL
from gemini import GeminiCli
from opencode import MODEL as OPENCODE_MODEL
from opencode import OpenCode
from terminal import PATIENCE_S, wait_until

from tracebridge.agents import agent
from tracebridge.agents.codex_cli.routing import hook_hash
from tracebridge.config_files import Place
from tracebridge.doctor import Names, diagnose
from tracebridge.routing import routing_module
from tracebridge.run import started_gateway
from tracebridge.testing.receiver import Answer, Receiver
from tracebridge.testing.scripted_gemini import ScriptedGemini
from tracebridge.testing.scripted_model import HttpError, Reply, ScriptedModel, Text, ToolUse
from tracebridge.testing.scripted_responses import ScriptedResponses
from tracebridge.watch_lock import is_watched

pytestmark = pytest.mark.real_agent

PROGRAMS = Path(__file__).resolve().parents[2] / ".agents" / "bin"


@dataclass(frozen=True)
class Kind:
    """What there is to know of an agent to have it verified."""

    player: type[Any]
    model: type[ScriptedModel]
    family: str
    path: str
    # What stands behind -- on the command line.
    options: tuple[str, ...]


KINDS = {
    "claude-code": Kind(ClaudeCode, ScriptedModel, "anthropic", "/api/anthropic", ()),
    "codex-cli": Kind(CodexCli, ScriptedResponses, "openai", "/api", ()),
    "gemini-cli": Kind(
        GeminiCli, ScriptedGemini, "gemini", "/api/google/gemini", ("-m", GEMINI_MODEL)
    ),
    "opencode": Kind(
        OpenCode, ScriptedModel, "anthropic", "/api/anthropic/v1", ("-m", OPENCODE_MODEL)
    ),
}


@dataclass
class Set:
    """A user whose agent has hooks, a gateway in the way, and a backend."""

    slug: str
    player: Any
    home: Path
    receiver: Receiver
    model: ScriptedModel

    @property
    def env(self) -> dict[str, str]:
        env = {**self.player.environment(), "TRACEBRIDGE_HOME": str(self.home)}
        return {**env, "PATH": f"{PROGRAMS}:{env['PATH']}"}

    @property
    def place(self) -> Place:
        return Place(self.player.home, self.player.project, self.env)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tracebridge", *words],
            cwd=self.player.project,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def verify(self, *words: str) -> tuple[int, dict[str, Any]]:
        options = KINDS[self.slug].options
        result = self.run("verify", "--json", *words, self.slug, "--", *options)
        assert result.stderr == ""
        return result.returncode, json.loads(result.stdout)


@contextmanager
def set_up(
    slug: str, tmp_path: Path, *, past_gateway: bool = False, env: Mapping[str, str] | None = None
) -> Iterator[Set]:
    kind = KINDS[slug]
    home = tmp_path / "state"
    home.mkdir(mode=0o700)
    with Receiver() as receiver, kind.model() as model:
        prompt = routing_module(agent(slug)).PROMPT
        ready: list[Reply] = [Reply([Text("ready")])]
        if slug == "gemini-cli":
            ready.insert(0, Reply([ToolUse("list_directory", {"dir_path": "."})]))
        model.script({prompt[:20]: ready})
        endpoint = f'OTEL_EXPORTER_OTLP_ENDPOINT = "{receiver.endpoint}"\n'
        (home / "config.toml").write_text(f"[env]\n{endpoint}")
        users_home = str(tmp_path / "play" / "home")
        our_env = {**os.environ, "HOME": users_home, "TRACEBRIDGE_HOME": str(home)}
        with (
            watching(home, our_env),
            started_gateway([f"{kind.family}={model.url}"], our_env) as url,
        ):
            base_url = f"{model.url if past_gateway else url}{kind.path}"
            player = kind.player(workdir=tmp_path / "play", base_url=base_url, env=env or {})
            ready_set = Set(slug, player, home, receiver, model)
            integrated = ready_set.run("integrate", slug)
            assert integrated.returncode == 0, integrated.stderr
            if slug == "codex-cli":
                approve(player)
            yield ready_set


@contextmanager
def watching(home: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Have a watcher, so that none has to be waited for that a hook started."""
    with started([sys.executable, "-m", "tracebridge", "watch"], env=env) as process:
        wait_until(lambda: is_watched(home), complaint="the watcher does not come up")
        yield
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def approve(codex: CodexCli) -> None:
    """Approve Codex's hooks, as its user does in /hooks."""
    path = codex.config / "hooks.json"
    lines = [(codex.config / "config.toml").read_text()]
    for event, groups in json.loads(path.read_text())["hooks"].items():
        snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in event).lstrip("_")
        digest = hook_hash(event, groups[0].get("matcher"), groups[0]["hooks"][0])
        lines += [f'[hooks.state."{path}:{snake}:0:0"]', f'trusted_hash = "{digest}"']
    (codex.config / "config.toml").write_text("\n".join(lines))


@pytest.mark.parametrize("slug", KINDS)
def test_a_good_set_up_is_proved(slug, tmp_path):
    """Installed by the command, run as its user does: every joint holds, and no rule fires."""
    with set_up(slug, tmp_path) as ready:
        code, verdict = ready.verify()
        assert verdict["broken"] is None, verdict
        assert code == 0
        holds = {joint["joint"]: joint["holds"] for joint in verdict["joints"]}
        joints = ("program", "turn", "hooks", "watcher", "gateway", "link", "sink")
        assert holds == dict.fromkeys(joints, True)
        assert verdict["trace_id"] in {span.trace_id for span in ready.receiver.spans}
        found = diagnose(ready.place, Names(agents=(slug,)))
        assert [each.rule.id for each in found] == []


def test_without_hooks(tmp_path):
    """The first broken joint is the hooks; the rule that explains it names the command."""
    with set_up("claude-code", tmp_path) as ready:
        assert ready.run("integrate", "claude-code", "--remove").returncode == 0
        code, verdict = ready.verify()
        assert (code, verdict["broken"], verdict["rule"]) == (1, "hooks", "hooks-missing")
        assert verdict["findings"][0]["command"] == "tracebridge integrate claude-code"


def test_with_hooks_that_nobody_approved(tmp_path):
    """Codex passes over them without a word; `notify` tells the turn all the same, and the rule."""
    with set_up("codex-cli", tmp_path) as ready:
        config = ready.player.config / "config.toml"
        config.write_text(config.read_text().partition("[hooks.state")[0])
        code, verdict = ready.verify()
        assert (code, verdict["broken"]) == (0, None)
        assert [each["rule"] for each in verdict["findings"]] == ["codex-hooks-untrusted"]
        config.write_text(config.read_text().replace("notify = [", "notify_not = ["))
        code, verdict = ready.verify()
        assert (code, verdict["broken"], verdict["rule"]) == (1, "hooks", "codex-hooks-untrusted")


def test_past_the_gateway(tmp_path):
    """Hooks fire and the turn is whole, but no gateway saw its calls."""
    with set_up("claude-code", tmp_path, past_gateway=True) as ready:
        code, verdict = ready.verify()
        assert (code, verdict["broken"], verdict["rule"]) == (1, "gateway", "gateway-silent")
        assert verdict["trace_id"] is not None


def test_a_sink_that_refuses(tmp_path):
    """Everything holds but the last joint."""
    with set_up("claude-code", tmp_path) as ready:
        ready.receiver.rule = lambda request: Answer(
            rejected=len(request.spans), error_message="no room"
        )
        code, verdict = ready.verify()
        assert (code, verdict["broken"], verdict["rule"]) == (1, "sink", "sink-failing")
        assert "no room" in verdict["joints"][-1]["said"]


def test_a_turn_that_fails(tmp_path):
    """The agent's own exit code and last words, and the rule that explains them."""
    with set_up("claude-code", tmp_path, env={"CLAUDE_CODE_MAX_RETRIES": "0"}) as ready:
        settings = ready.player.home / ".claude" / "settings.json"
        content = json.loads(settings.read_text())
        content["env"]["ANTHROPIC_AUTH_TOKEN"] = "of-another-gateway-0123456789"
        settings.write_text(json.dumps(content))
        prompt = routing_module(agent("claude-code")).PROMPT[:20]
        refused = Reply([Text("never said")], failures=(HttpError(403, "wrong credential"),) * 9)
        ready.model.script({prompt: [refused]})
        code, verdict = ready.verify()
        assert (code, verdict["broken"]) == (1, "turn")
        assert "403" in verdict["joints"][-1]["said"]
        assert "claude-two-credentials" in {each["rule"] for each in verdict["findings"]}


def test_a_turn_that_its_user_makes(tmp_path):
    """With --wait nothing is started: somebody else's turn is followed."""
    with set_up("claude-code", tmp_path) as ready:
        command = [sys.executable, "-m", "tracebridge", "verify", "claude", "--wait"]
        with started(
            [*command, "--timeout", str(PATIENCE_S)],
            cwd=ready.player.project,
            env=ready.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting:
            assert "waiting" in waiting.stderr.readline()
            prompt = routing_module(agent("claude-code")).PROMPT
            assert ready.player.run(prompt).exit_code == 0
            said, errors = waiting.communicate(timeout=2 * PATIENCE_S)
        assert waiting.returncode == 0, said + errors
        assert "linked exactly" in said


def test_codex_writes_down_what_we_compute(tmp_path):
    """What an approval is for is computed as Codex computes it, so nothing has to be started."""
    with set_up("codex-cli", tmp_path) as ready:
        listed = hooks_that_codex_lists(ready)
        module = routing_module(agent("codex-cli"))
        setup = module.read_setup(ready.place)
        assert {hook["trustStatus"] for hook in listed} == {"trusted"}
        assert {hook["currentHash"] for hook in listed} == {
            hook_hash(hook.event, None, hook.entry) for hook in module.hooks(setup)
        }
        path = ready.player.config / "hooks.json"
        path.write_text(path.read_text().replace('"timeout": 3', '"timeout": 2'))
        assert {hook["trustStatus"] for hook in hooks_that_codex_lists(ready)} == {"modified"}
        found = diagnose(ready.place, Names(rules=("codex-hooks-edited",)))
        assert len(found) == 1


def hooks_that_codex_lists(ready: Set) -> list[dict[str, Any]]:
    questions = (
        {"id": 1, "method": "initialize", "params": {"clientInfo": {"name": "t", "version": "0"}}},
        {"method": "initialized"},
        {"id": 2, "method": "hooks/list", "params": {"cwds": [str(ready.player.project)]}},
    )
    with subprocess.Popen(
        [str(PROGRAMS / "codex"), "app-server"],
        cwd=ready.player.project,
        env=ready.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        server.stdin.write("".join(json.dumps(question) + "\n" for question in questions))
        server.stdin.flush()
        answer = next(line for line in server.stdout if json.loads(line).get("id") == 2)
        server.stdin.close()
    return json.loads(answer)["result"]["data"][0]["hooks"]


# Gemini CLI's are two plain variables.
@pytest.mark.parametrize("slug", ["claude-code", "codex-cli", "opencode"])
def test_lines_typed_by_hand_route_the_agent(slug, tmp_path):
    """What `env` prints sends the real program's requests where it says, with nothing edited."""
    kind = KINDS[slug]
    module = routing_module(agent(slug))
    with kind.model() as model:
        model.script({module.PROMPT[:20]: [Reply([Text("ready")])]})
        player = kind.player(workdir=tmp_path / "play", base_url="http://127.0.0.1:9/x/v1")
        own_key = {"codex-cli": "SCRIPTED_API_KEY"}
        words = ["--gateway", model.url, "--shell", "bash"]
        words += ["--api-key-env", own_key.get(slug, "ANTHROPIC_API_KEY")]
        command = [sys.executable, "-m", "tracebridge", "env", slug, *words]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        turn = shlex.join([agent(slug).PROGRAM, *module.one_turn(kind.options)])
        done = subprocess.run(
            ["bash", "-c", f"{lines}\n{turn}"],
            cwd=player.project,
            env={**player.environment(), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "ready" in done.stdout
        assert {each.path.startswith(kind.path) for each in model.calls()} == {True}


def test_what_claude_code_makes_of_its_settings(tmp_path):
    """As `route` and the rules have it: who wins, /v1 twice, and names that nothing reads."""
    with ScriptedModel() as model:
        prompt = routing_module(agent("claude-code")).PROMPT
        model.script({prompt[:20]: [Reply([Text("ready")])]})
        claude = ClaudeCode(
            workdir=tmp_path,
            base_url="http://127.0.0.1:9",
            env={"ANTHROPIC_TIMEOUT_MS": "30000", "ANTHROPIC_AUTH_TOKEN": "of-the-shell"},
        )
        path = claude.home / ".claude" / "settings.json"
        settings = json.loads(path.read_text())
        settings["env"]["ANTHROPIC_BASE_URL"] = f"{model.url}/api/anthropic/v1"
        settings["routing"] = {"apiBaseUrl": f"{model.url}/fiction"}
        path.write_text(json.dumps(settings))
        assert claude.run(prompt).exit_code == 0
        (call,) = model.calls()
        place = Place(claude.home, claude.project, claude.environment())
        module = routing_module(agent("claude-code"))
        routing = module.routing(module.read_setup(place))
        assert f"{model.url}{call.path}".startswith(routing.url)
        assert "/v1/v1/messages" in call.path
        assert call.headers["x-stainless-timeout"] == "600"
        assert call.headers["authorization"] == "Bearer of-the-shell"
        assert "x-api-key" in call.headers
        found = {each.rule.id for each in diagnose(place, Names(agents=("claude-code",)))}
        assert {
            "claude-base-url-v1",
            "claude-routing-fiction",
            "claude-timeout-name",
            "claude-two-credentials",
            "claude-token-in-shell",
        } <= found
