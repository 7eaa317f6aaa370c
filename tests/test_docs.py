"""What the pages tell people to type is typed here.

Shell blocks of a page run one after another in one shell, in a clean environment, as somebody would who
reads it: with real agents and real servers, and a scripted model where the vendor's is. Where a
paragraph before a block says what it *Needs*, the block is not run: its lines are still parsed, and its
settings are read by us.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
import pytest
from beside import free_port
from pypi_programs import Program, installed
from recordings import lay_out, recordings

from tracebridge import agents as agents_package
from tracebridge import sinks as sinks_package
from tracebridge.agents import agent, agents
from tracebridge.cli import load, main
from tracebridge.model import HookEvent
from tracebridge.settings import SETTINGS, read_settings
from tracebridge.sinks import configured_sinks
from tracebridge.spans import render
from tracebridge.store import Store
from tracebridge.testing.receiver import Receiver
from tracebridge.testing.scripted_model import ScriptedModel
from tracebridge.turns import TurnAssembler
from tracebridge.watch_lock import is_watched

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "examples").rglob("*.md")),
]
SHELLS = {"sh", "bash"}
PATIENCE_S = 300
# What a page's servers listen on, so that pages do not meet each other or anybody else.
PORTS = ("4141", "4318", "5000", "6006")
# Programs that a page starts, and where they come from.
PROGRAMS = {
    "phoenix": Program("arize-phoenix", "20.26.1", "bin/phoenix"),
    "mlflow": Program("mlflow", "3.17.2", "bin/mlflow"),
    "collector": Program("trace-view", "0.1.0", "bin/tv"),
}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    # What a reader must have who wants to run it; "" if nothing.
    needs: str


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text("utf-8").splitlines()
    paragraph, start, language = "", None, ""
    for number, line in enumerate(lines, start=1):
        fence = re.fullmatch(r"\s*```(\w*)", line)
        if start is not None:
            if fence is not None:
                text = "\n".join(lines[start : number - 1]) + "\n"
                needs = paragraph if paragraph.startswith("Needs ") else ""
                yield Block(page, start, language, text, needs)
                start, paragraph = None, ""
        elif fence is not None:
            start, language = number, fence[1]
        elif line.strip():
            paragraph = line.strip()


BLOCKS = [block for page in PAGES for block in blocks(page)]


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def commands_in(block: Block) -> Iterator[list[str]]:
    """Yield the words of each call of tracebridge in a shell block."""
    joined = block.text.replace("\\\n", " ")
    for line in joined.splitlines():
        if "tracebridge " not in line:
            continue
        words = shlex.split(line.replace("…", "x"), comments=True)
        for begin, word in enumerate(words):
            if word == "tracebridge":
                own = words[begin + 1 :]
                ends = [n for n, w in enumerate(own) if w in {"&", "|", ">", "&&", "2>"}]
                yield own[: ends[0]] if ends else own
                break


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_on_a_page_exists_as_it_is_written(page):
    """With its options: what was renamed or taken away is found, also where it cannot be run."""
    for block in blocks(page):
        if block.language not in {*SHELLS, ""} or "tracebridge" not in block.text:
            continue
        if not block.language and not re.search(r"^tracebridge ", block.text, re.MULTILINE):
            continue
        for words in commands_in(block):
            assert words[0] in main.commands, f"{name_of(page)}:{block.line}: {words}"
            command = load(words[0])
            arguments = [w.replace("AGENT…", "claude-code") for w in words[1:]]
            parameters = [p for p in command.params if isinstance(p, click.Option)]
            known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
            if words[0] == "run":
                arguments = arguments[: arguments.index("--")] if "--" in arguments else []
            for word in arguments:
                if word.startswith("--"):
                    option = word.partition("=")[0]
                    assert option in {*known, "--help"}, f"{name_of(page)}:{block.line}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_on_a_page_are_understood(page, home):
    """TOML by the reader of our settings, JSON as JSON, shell by the shell."""
    for block in blocks(page):
        if block.language == "toml" and {*tomllib.loads(block.text)} & {
            "env",
            *(setting.name for setting in SETTINGS),
        }:
            home.mkdir(exist_ok=True)
            (home / "config.toml").write_text(block.text)
            settings = read_settings({**os.environ, "TRACEBRIDGE_HOME": str(home)})
            configured_sinks(settings.env)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language in SHELLS:
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


NEEDY = [block for block in BLOCKS if block.needs]


@pytest.mark.parametrize("block", NEEDY, ids=lambda b: f"{name_of(b.page)}:{b.line}")
def test_a_block_that_cannot_run_here_has_settings_that_can_be_read(block):
    """The sinks that it sets up are ready, each at a place of its own; keys are not looked up."""
    exports = [line for line in block.text.splitlines() if line.startswith("export ")]
    env = {}
    for line in exports:
        for word in shlex.split(line)[1:]:
            name, _, value = word.partition("=")
            env[name] = value
    sinks = configured_sinks(env)
    if "TRACEBRIDGE_SINKS" in env:
        assert [sink.name for sink in sinks] == [env["TRACEBRIDGE_SINKS"]]
        assert not any("localhost" in sink.target for sink in sinks)
    else:
        assert exports or block.text.startswith("pip install ")


def test_needs_are_few_and_known():
    """The list of what no test runs; whoever adds to it says so here."""
    assert sorted({f"{name_of(b.page)}: {b.needs}" for b in NEEDY}) == [
        "examples/backends/accounts.md: Needs a Datadog account (LLM Observability, without the"
        " agent):",
        "examples/backends/accounts.md: Needs a Grafana Cloud account:",
        "examples/backends/accounts.md: Needs a Honeycomb account:",
        "examples/backends/accounts.md: Needs a LangSmith account:",
        "examples/backends/accounts.md: Needs a Langfuse account:",
        "examples/backends/accounts.md: Needs a Respan account:",
        "examples/backends/collector.md: Needs PyPI:",
        "examples/backends/collector.md: Needs a collector of yours:",
        "examples/backends/mlflow.md: Needs a gigabyte of disk and a minute:",
        "examples/backends/phoenix.md: Needs a gigabyte of disk and a minute:",
        "examples/gateways/respan.md: Needs a Respan account:",
    ]


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End what a page started and left running."""
    deadline = time.monotonic() + PATIENCE_S
    number = signal.SIGTERM
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        process.poll()
        time.sleep(0.05)
        if time.monotonic() > deadline - PATIENCE_S + 20:
            number = signal.SIGKILL
    process.wait()


class Reader:
    """Somebody with an empty home and a project, who types what a page says."""

    def __init__(self, place: Path) -> None:
        self.home, self.project = place / "home", place / "project"
        self.state = place / "state"
        for folder in (self.home, self.project):
            folder.mkdir(parents=True)
        subprocess.run(["git", "init", "--quiet", str(self.project)], check=True)
        self.folders = [Path(sys.executable).parent]
        self.env = {
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "SHELL": "/bin/sh",
            "TMPDIR": str(place),
            "TRACEBRIDGE_HOME": str(self.state),
            # Watchers that hooks start leave as soon as there is nothing to do.
            "TRACEBRIDGE_IDLE_MINUTES": "0",
        }
        # In a page's text, what stands for the world outside.
        self.elsewhere: dict[str, str] = {}

    def type_all(self, page: Path) -> str:
        """Run the page's shell blocks that need nothing; return what was said."""
        script = ["set -eu -o pipefail", "trap 'echo \"failed: block at line $LINE_OF_PAGE\"' ERR"]
        for block in blocks(page):
            if block.language in SHELLS and not block.needs:
                script += [f"LINE_OF_PAGE={block.line}", block.text]
        text = "\n".join(script)
        for outside, here in self.elsewhere.items():
            text = text.replace(outside, here)
        ports = {port: str(free_port()) for port in PORTS}
        text = re.sub(rf"(?<=[:\s=])({'|'.join(PORTS)})\b", lambda found: ports[found[0]], text)
        path = os.pathsep.join([*map(str, self.folders), os.environ["PATH"]])
        log = self.home.parent / "said"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", text],
                cwd=self.project,
                env={**self.env, "PATH": path},
                stdin=subprocess.DEVNULL,
                # A file, since servers in the background would keep a pipe open.
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            process.wait(PATIENCE_S)
        finally:
            _end_session(process)
        said = log.read_text("utf-8", "replace")
        assert process.returncode == 0, said[-3000:]
        self._wait_for_watchers()
        return said

    def _wait_for_watchers(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while is_watched(self.state):
            assert time.monotonic() < deadline, "a watcher does not end"
            time.sleep(0.05)

    def turns(self):
        with Store(self.state) as store:
            return store.turns()


@pytest.mark.real_agent
@pytest.mark.parametrize("slug", list(agents()))
def test_the_page_of_an_agent_runs_as_written(slug, tmp_path):
    """The real agent, a scripted model: traced by `run`, by hooks, by import, and out again."""
    reader = Reader(tmp_path / "reader")
    reader.folders.append(REPOSITORY / ".agents" / "bin")
    script = import_module(f"tracebridge.demo.{slug.replace('-', '_')}")
    reader.env |= script.ENV
    script.prepare(reader.home, reader.project)
    with script.MODEL({}) as model:
        _point_at(slug, reader, model.url)
        said = reader.type_all(REPOSITORY / "examples" / "agents" / f"{slug}.md")
        told = [row for row in reader.turns() if row.told]
        assert {row.agent for row in told} == {slug}
        assert len(told) >= 2, said
        assert {row.outcome for row in told} == {"completed"}


def test_the_page_of_records_runs_as_written(tmp_path):
    """A script's log becomes a call of a script."""
    reader = Reader(tmp_path / "reader")
    said = reader.type_all(REPOSITORY / "docs" / "records.md")
    assert '"message":"log successful"' in said
    with Store(reader.state) as store:
        assert store.link_counts_by_gateway() == {"logged": {"script": 1}}


def test_the_page_of_the_gateway_runs_as_written(tmp_path):
    """A key is made, listed with its owner, and taken away."""
    reader = Reader(tmp_path / "reader")
    said = reader.type_all(REPOSITORY / "docs" / "gateway.md")
    assert "alice                    since " in said
    assert "alice is let in no more" in said
    assert (reader.project / "alice.key").read_text().startswith("tbk_")


# What a newcomer's shell knows already, or would not come back from.
README_LINES = (
    (re.compile(r"^pip install \S+", re.MULTILINE), ":"),
    (re.compile(r"^make (\w+)", re.MULTILINE), rf"make -n -C {REPOSITORY} \1"),
    (re.compile(r"^tracebridge tail\b", re.MULTILINE), "tracebridge tail --once"),
    (re.compile(r"^(tracebridge gateway [^#\n]*)", re.MULTILINE), r"\1 &"),
)
TYPED = re.compile(r"(tracebridge|export|pip|make) ")


@pytest.mark.real_agent
def test_the_readme_runs_as_written(tmp_path):
    """Its blocks of commands, one after another, with the real Claude Code."""
    reader = Reader(tmp_path / "reader")
    reader.folders.append(REPOSITORY / ".agents" / "bin")
    script = import_module("tracebridge.demo.claude_code")
    reader.env |= script.ENV
    typed = [
        block
        for block in blocks(REPOSITORY / "README.md")
        if block.language in {*SHELLS, ""} and TYPED.match(block.text) and not block.needs
    ]
    assert typed
    page = tmp_path / "readme.md"
    text = "\n".join(f"```sh\n{block.text}```\n" for block in typed)
    for pattern, instead in README_LINES:
        text = pattern.sub(instead, text)
    page.write_text(text)
    with script.MODEL({}) as model:
        _point_at("claude-code", reader, model.url)
        reader.type_all(page)
    assert {row.agent for row in reader.turns()} == {"claude-code"}


def _point_at(slug: str, reader: Reader, url: str) -> None:
    """Make the user's own settings name the scripted model, as if it were the vendor's."""
    if slug == "claude-code":
        reader.env["ANTHROPIC_BASE_URL"] = url
    elif slug == "gemini-cli":
        reader.env["GOOGLE_GEMINI_BASE_URL"] = url
    elif slug == "codex-cli":
        config = reader.home / ".codex" / "config.toml"
        config.write_text(config.read_text().replace("http://127.0.0.1:9", f"{url}/v1"))
    else:
        config = reader.home / ".config" / "opencode" / "opencode.json"
        settings = json.loads(config.read_text())
        settings["provider"] = {"anthropic": {"options": {"baseURL": f"{url}/v1"}}}
        config.write_text(json.dumps(settings))


@pytest.mark.parametrize("name", ["tracebridge", "any", "respan"])
def test_the_page_of_a_gateway_runs_as_written(name, tmp_path):
    """Calls pass to the model that stands where the vendor is, and are counted."""
    reader = Reader(tmp_path / "reader")
    page = REPOSITORY / "examples" / "gateways" / f"{name}.md"
    with ScriptedModel() as model:
        reader.elsewhere = {
            "https://api.anthropic.com": model.url,
            "http://127.0.0.1:4000/v1": model.url,
            "http://127.0.0.1:4000": model.url,
        }
        reader.type_all(page)
        if name == "respan":
            return
        assert len(model.attempts) == 1
    with Store(reader.state) as store:
        assert store.link_counts() == {"script": 1}


@pytest.mark.parametrize(
    "name",
    ["collector", *(pytest.param(n, marks=pytest.mark.heavy) for n in ("phoenix", "mlflow"))],
)
def test_the_page_of_a_backend_runs_as_written(name, tmp_path):
    """The real backend takes past sessions of all four agents, each span acknowledged."""
    reader = Reader(tmp_path / "reader")
    reader.folders.append(installed(PROGRAMS[name]).parent)
    for recording in recordings():
        if recording.name == "tools":
            lay_out(recording, reader.home)
    said = reader.type_all(REPOSITORY / "examples" / "backends" / f"{name}.md")
    assert "1 spans sent" in said
    assert {row.agent for row in reader.turns()} == {*agents()}
    with Store(reader.state) as store:
        assert store.waiting() == 0
        sent = {row.name: row.sent for row in store.sinks()}
    assert sent[name] > 20


def test_the_page_about_other_hooks_runs_as_written(tmp_path):
    """Its settings are ready, and `status` shows no key."""
    reader = Reader(tmp_path / "reader")
    for recording in recordings():
        if (recording.parent.name, recording.name) == ("claude-code", "tools"):
            lay_out(recording, reader.home)
    page = REPOSITORY / "docs" / "migrating.md"
    said = reader.type_all(page)
    for target in ("api.respan.ai", "cloud.langfuse.com", "smith.langchain.com", "braintrust.dev"):
        assert target in said
    for key in ("your-key", "sk-lf-1", "Bearer"):
        assert key not in said
    assert [row.agent for row in reader.turns()] == ["claude-code"]


def test_the_page_about_history_runs_as_written(tmp_path):
    """Import, export and reconcile, on past sessions of all four agents."""
    reader = Reader(tmp_path / "reader")
    for recording in recordings():
        if recording.name == "tools":
            lay_out(recording, reader.home)
    said = reader.type_all(REPOSITORY / "docs" / "history.md")
    assert {row.agent for row in reader.turns()} == {*agents()}
    assert "0 unexplained" in said
    assert json.loads((reader.project / "turns.json").read_text())["resourceSpans"]
    spans = (reader.project / "spans.jsonl").read_text().splitlines()
    assert {json.loads(line)["agent"] for line in spans} == {*agents()}
    assert len((reader.project / "compared.jsonl").read_text().splitlines()) == 4


def test_the_id_contract_holds_in_each_language_of_its_page(tmp_path):
    """Python, JavaScript and a shell compute the same ids, and check them against the vectors."""
    page = REPOSITORY / "docs" / "ids.md"
    Reader(tmp_path / "reader").type_all(page)
    ran = set()
    for block in blocks(page):
        program = {"python": sys.executable, "javascript": shutil.which("node")}.get(block.language)
        if program is not None:
            flags = ["-e"] if block.language == "javascript" else ["-c"]
            subprocess.run([program, *flags, block.text], check=True)
            ran.add(block.language)
    assert ran == {"python", "javascript"}


@pytest.fixture
def written_adapters(tmp_path, monkeypatch):
    """Put the modules of docs/adapter.md beside ours for the time of a test."""
    names = []
    for block in blocks(REPOSITORY / "docs" / "adapter.md"):
        path = re.match(r"# tracebridge/(\w+)/(\w+)\.py\n", block.text)
        if path is not None:
            folder = tmp_path / path[1]
            folder.mkdir()
            (folder / f"{path[2]}.py").write_text(block.text)
            names.append(f"tracebridge.{path[1]}.{path[2]}")
    for package in (agents_package, sinks_package):
        folder = str(tmp_path / package.__name__.rpartition(".")[2])
        monkeypatch.setattr(package, "__path__", [*package.__path__, folder])
    agents.cache_clear()
    yield names
    agents.cache_clear()
    for name in names:
        sys.modules.pop(name, None)


def test_an_adapter_is_one_file(written_adapters):
    """The one of the page is found, and its hook events become a turn with a tool call."""
    assert "tracebridge.agents.example" in written_adapters
    example = agent("example")
    events = [
        {"event": "prompt", "text": "go"},
        {"event": "tool", "id": "t1", "name": "Look"},
        {"event": "done"},
        {"event": "weather"},
    ]
    assembler = TurnAssembler("example", "s")
    notes = {}
    for second, fields in enumerate(events, start=1):
        payload = json.dumps({"session": "s", "turn": "1", **fields}).encode()
        event = HookEvent(
            agent="example",
            time_ns=second * 10**9,
            pid=1,
            env={},
            payload=payload,
            payload_bytes=len(payload),
        )
        reading = example.parse_hook(event)
        assembler.add(reading.sightings)
        notes.update(reading.notes)
    (turn,) = assembler.turns()
    assert [span.name for span in render(turn)] == ["execute_tool Look", "invoke_agent example"]
    assert turn.outcome == "completed"
    assert notes == {"hook event 'weather' ignored": 1}
    assert example.identify_call({"x-example-session": "s"}, {}).agent == "example"


@pytest.mark.usefixtures("written_adapters")
def test_a_sink_is_one_file():
    """The one of the page sends with its key, in its words."""
    with Receiver() as receiver:
        env = {"TRACEBRIDGE_SINKS": "example", "EXAMPLE_URL": receiver.endpoint}
        (ready,) = configured_sinks({**env, "EXAMPLE_API_KEY": "k"})
        from tracebridge.sending import try_sink

        assert try_sink(ready).error is None
        assert receiver.requests[0].headers["x-example-key"] == "k"
        assert receiver.spans[0].attributes["example.team"] == ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    """To files that are there."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"
