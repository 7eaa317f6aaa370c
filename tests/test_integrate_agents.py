"""What `integrate` writes for each agent, and that all of it goes again."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from beside import started
from hypothesis import given, settings
from hypothesis import strategies as st

from tracebridge import integrate as module
from tracebridge.agents import agent, agents
from tracebridge.edits.env_lines import EnvLines
from tracebridge.edits.json_text import JsonText
from tracebridge.integrate import IntegrateError, Options, Place, gateway_upstreams, integrate
from tracebridge.keys import resolve
from tracebridge.testing.scripted_model import Reply, ScriptedModel, Text

SLUGS = sorted(agents())
JSON = JsonText(comments=True, trailing_commas=True)
RESPAN = Options(gateway=("respan",), route_provider="vertex_ai", model="a/b")
JSONC = b'// mine\n{\n  "x": {"y": [1, 2,], /* z */ },\n}'
FILES = {
    "claude-code": {
        ".claude/settings.json": b'{"env": {"ANTHROPIC_API_KEY": "theirs", "FOO": "1"},'
        b' "apiKeyHelper": "theirs", "model": "opus"}\r\n'
    },
    "codex-cli": {
        ".codex/config.toml": '# mine\r\nmodel = "o3"  # é\r\nnotify = ["say", "hi"]'.encode(),
        ".codex/hooks.json": b'{"hooks": {"Stop": [{"hooks": []}]}}',
    },
    "gemini-cli": {
        ".gemini/settings.json": b'// mine\n{"telemetry": {"enabled": false}}',
        ".gemini/.env": b"GOOGLE_GEMINI_BASE_URL=https://theirs # why\nA='b'",
    },
    "opencode": {".config/opencode/opencode.jsonc": JSONC},
}


@pytest.fixture
def user():
    return Path.home()


@pytest.fixture
def place(user, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    return Place(scope="global", home=user, project=project, env={"PATH": os.environ["PATH"]})


@pytest.fixture
def local(place):
    return Place(scope="local", home=place.home, project=place.project, env=place.env)


def write(user, slug):
    for name, data in FILES[slug].items():
        path = user / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def everything_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def run(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "tracebridge", "integrate", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        **more,
    )


def read_json(path):
    return JSON.parse(path.read_text())


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("there", [True, False])
def test_everything_goes_again(slug, there, user, place, home):
    """With a gateway, a key, headers and tags, over rich files or none: byte for byte, folders too."""
    if there:
        write(user, slug)
    before = everything_in(user)
    options = Options(
        gateway=("respan",), model="a/b", route_provider="x", tags={"customer_id": "acme", "n": 1}
    )
    integrate(agent(slug), place, options, home)
    wired = everything_in(user)
    assert wired != before
    again = integrate(agent(slug), place, Options(), home)
    assert not any(change.changes for change in again.changes)
    assert everything_in(user) == wired
    integrate(agent(slug), place, Options(), home, remove=True)
    assert everything_in(user) == before


@pytest.mark.parametrize("slug", SLUGS)
def test_only_ours_goes_where_others_wrote_meanwhile(slug, user, place, home):
    """What they added stays, and what stood where ours stood is back."""
    write(user, slug)
    before = {name: data for name, data in everything_in(user).items() if data is not None}
    integrate(agent(slug), place, RESPAN, home)
    parse = {".toml": tomllib.loads, ".env": EnvLines().parse}
    for name, data in everything_in(user).items():
        if data is None or name not in before:
            continue
        path = user / name
        added = b"NEW=1\n" if path.name == ".env" else b"\n"
        path.write_bytes(data + (b"\n" if path.name == ".env" else b"") + added)
    integrate(agent(slug), place, Options(), home, remove=True)
    for name, data in before.items():
        path = user / name
        key = ".env" if path.name == ".env" else path.suffix
        said = parse.get(key, JSON.parse)
        expected = said(data.decode())
        if key == ".env":
            expected["NEW"] = "1"
        assert said(path.read_bytes().decode()) == expected, name


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SLUGS),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "env", "hooks", "Stop", "é"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from([None, 2, "\t"]),
    st.booleans(),
)
def test_in_and_out_is_nothing(slug, value, indent, windows):
    """Whatever stands in a settings file: it is refused untouched, or comes back byte for byte."""
    with tempfile.TemporaryDirectory() as folder:
        user = Path(folder) / "user"
        place = Place(scope="global", home=user, project=Path(folder), env={})
        name = next(name for name in FILES[slug] if name.endswith(("json", "jsonc")))
        path = user / name
        path.parent.mkdir(parents=True)
        text = json.dumps({"a": value, "hooks": {"Stop": [value]}}, indent=indent)
        path.write_bytes(text.replace("\n", "\r\n" if windows else "\n").encode())
        before = everything_in(user)
        try:
            integrate(agent(slug), place, Options(), Path(folder) / "home")
        except IntegrateError:
            assert everything_in(user) == before
            return
        assert everything_in(user) != before
        integrate(agent(slug), place, Options(), Path(folder) / "home", remove=True)
        assert everything_in(user) == before


def test_claude_code_asks_a_helper_for_the_key(user, place, home):
    """Both credentials are cleared, which else would be sent; no key stands in the file."""
    integrate(agent("claude"), place, RESPAN, home)
    written = read_json(user / ".claude" / "settings.json")
    env = written["env"]
    assert env["ANTHROPIC_BASE_URL"] == "https://api.respan.ai/api/anthropic"
    assert (env["ANTHROPIC_API_KEY"], env["ANTHROPIC_AUTH_TOKEN"]) == ("", "")
    assert env["ANTHROPIC_CUSTOM_HEADERS"] == "X-Respan-Route-Provider: vertex_ai"
    assert written["apiKeyHelper"] == "printenv RESPAN_API_KEY"
    assert written["model"] == "a/b"


def test_claude_codes_own_key_needs_no_helper(user, place, home):
    """It is where Claude Code looks anyway."""
    integrate(agent("claude"), place, Options(key="ANTHROPIC_API_KEY", gateway=("respan",)), home)
    written = read_json(user / ".claude" / "settings.json")
    assert "apiKeyHelper" not in written
    assert "ANTHROPIC_API_KEY" not in written["env"]
    assert written["env"]["ANTHROPIC_AUTH_TOKEN"] == ""


def test_a_native_traceparent_takes_four_variables(user, place, local, home):
    """And one that keeps spans that nobody asked for from going anywhere; not for one project."""
    integrate(agent("claude"), place, Options(traceparent=True), home)
    env = read_json(user / ".claude" / "settings.json")["env"]
    assert {
        "CLAUDE_CODE_ENABLE_TELEMETRY",
        "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA",
        "CLAUDE_CODE_PROPAGATE_TRACEPARENT",
        "OTEL_TRACES_EXPORTER",
    } <= env.keys()
    assert env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"].startswith("http://127.0.0.1:9/")
    with pytest.raises(IntegrateError, match="--global"):
        integrate(agent("claude"), local, Options(traceparent=True), home)


def test_headers_are_merged_never_hidden(user, place, local, home):
    """A value in one file would hide that of another as a whole."""
    settings_file = user / ".claude" / "settings.json"
    settings_file.parent.mkdir()
    settings_file.write_text('{"env": {"ANTHROPIC_CUSTOM_HEADERS": "X-A: 1\\nX-B: 2"}}')
    with pytest.raises(IntegrateError, match="would hide it"):
        integrate(agent("claude"), local, RESPAN, home)
    integrate(agent("claude"), place, RESPAN, home)
    headers = read_json(settings_file)["env"]["ANTHROPIC_CUSTOM_HEADERS"]
    assert headers == "X-A: 1\nX-B: 2\nX-Respan-Route-Provider: vertex_ai"
    integrate(agent("claude"), place, Options(route_provider="other"), home)
    headers = read_json(settings_file)["env"]["ANTHROPIC_CUSTOM_HEADERS"]
    assert headers == "X-A: 1\nX-B: 2\nX-Respan-Route-Provider: other"
    shell = Place(
        scope="global",
        home=user / "other",
        project=place.project,
        env={"ANTHROPIC_CUSTOM_HEADERS": "X-C: 3"},
    )
    with pytest.raises(IntegrateError, match="your shell"):
        integrate(agent("claude"), shell, RESPAN, home)


def test_codex_gets_a_provider_and_keeps_its_notify(user, place, home):
    """The command that was notified before is called by ours, with the same words."""
    write(user, "codex-cli")
    integrate(agent("codex"), place, Options(gateway=("respan",)), home)
    config = tomllib.loads((user / ".codex" / "config.toml").read_text())
    assert config["model_provider"] == "respan"
    assert config["model_providers"]["respan"] == {
        "name": "Respan",
        "base_url": "https://api.respan.ai/api",
        "wire_api": "responses",
        "env_key": "RESPAN_API_KEY",
    }
    assert config["model"] == "o3"
    assert config["notify"][-2:] == ["say", "hi"]
    assert Path(config["notify"][1]).name == "tracebridge_notify.sh"


def test_codexs_own_provider_keeps_its_key(user, place, home):
    """Where no other key is named, its base URL alone is changed, and comes back."""
    path = user / ".codex" / "config.toml"
    path.parent.mkdir()
    mine = '[model_providers.mine]\nbase_url = "https://mine" # why\nenv_key = "MINE"\n'
    path.write_text(f'model_provider = "mine"\n{mine}')
    integrate(agent("codex"), place, Options(gateway=("local",), route_provider="x"), home)
    provider = tomllib.loads(path.read_text())["model_providers"]["mine"]
    assert provider == {
        "base_url": "http://127.0.0.1:4141/api",
        "env_key": "MINE",
        "http_headers": {"X-Respan-Route-Provider": "x"},
    }
    path.write_text(path.read_text() + "\n")
    integrate(agent("codex"), place, Options(), home, remove=True)
    assert tomllib.loads(path.read_text()) == tomllib.loads(f'model_provider = "mine"\n{mine}')


def test_codex_routes_for_all_projects_only(local, home):
    """It takes no provider from a project's file."""
    with pytest.raises(IntegrateError, match="--global"):
        integrate(agent("codex"), local, RESPAN, home)
    done = integrate(agent("codex"), local, Options(), home)
    assert [change.path.name for change in done.changes if change.changes] == ["hooks.json"]


def test_codex_says_that_hooks_wait_for_approval(place, home):
    """Nothing is approved that nobody approved."""
    done = integrate(agent("codex"), place, Options(), home)
    assert any("/hooks" in remark for remark in done.remarks)
    assert b"trusted_hash" not in (place.home / ".codex" / "config.toml").read_bytes()


def test_what_was_notified_before_still_is(tmp_path, user, place, home):
    """With the payload as its last word; what ours does cannot fail it."""
    seen = tmp_path / "seen"
    write(user, "codex-cli")
    theirs = ["/bin/sh", "-c", f'printf "%s|" "$@" >{seen}; exit 3', "sh", "a b"]
    config = user / ".codex" / "config.toml"
    config.write_text(f"notify = {json.dumps(theirs)}\n")
    integrate(agent("codex"), place, Options(), home)
    notify = tomllib.loads(config.read_text())["notify"]
    payload = '{"type":"agent-turn-complete","thread-id":"t","turn-id":"u","note":"it\'s"}'
    env = {"PATH": os.defpath, "TRACEBRIDGE_NO_WATCH": "1", "HOME": str(user)}
    done = subprocess.run([*notify, payload], env=env, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"")
    assert seen.read_text() == f"a b|{payload}|"
    (event,) = (home / "spool" / "new").iterdir()
    assert event.read_bytes().endswith(payload.encode())


def test_gemini_tells_our_own_gateway_of_its_responses(user, place, home):
    """Its telemetry goes there, unless its user has settings of his own for it; all comes out."""
    path = user / ".gemini" / "settings.json"
    integrate(agent("gemini"), place, Options(gateway=("local",)), home)
    telemetry = read_json(path)["telemetry"]
    assert telemetry["otlpEndpoint"] == "http://127.0.0.1:4141"
    assert telemetry["logPrompts"] is False
    integrate(agent("gemini"), place, Options(), home, remove=True)
    assert not path.exists()
    write(user, "gemini-cli")
    integrate(agent("gemini"), place, Options(gateway=("local",)), home)
    assert b'{"enabled": false}' in path.read_bytes()


def test_gemini_gets_its_base_urls_from_the_env_file(user, place, home):
    """Beside what is there; its key is never ours to write."""
    write(user, "gemini-cli")
    done = integrate(agent("gemini"), place, RESPAN, home)
    lines = (user / ".gemini" / ".env").read_text().splitlines()
    assert lines == [
        "GOOGLE_GEMINI_BASE_URL=https://api.respan.ai/api/google/gemini # why",
        "A='b'",
        "GOOGLE_VERTEX_BASE_URL=https://api.respan.ai/api/google/vertexai",
        "GEMINI_CLI_CUSTOM_HEADERS=X-Respan-Route-Provider: vertex_ai",
    ]
    written = read_json(user / ".gemini" / "settings.json")
    assert written["security"]["auth"]["selectedType"] == "gemini-api-key"
    assert any("GEMINI_API_KEY" in remark for remark in done.remarks)


def test_opencode_is_spared_its_wait(user, place, home):
    """The lock file that it looks for is there, and both providers go to the gateway."""
    integrate(agent("opencode"), place, RESPAN, home)
    folder = user / ".config" / "opencode"
    assert sorted(path.name for path in folder.iterdir()) == [
        "node_modules",
        "opencode.json",
        "package-lock.json",
    ]
    provider = read_json(folder / "opencode.json")["provider"]
    assert provider["anthropic"]["options"] == {
        "baseURL": "https://api.respan.ai/api/anthropic/v1",
        "apiKey": "{env:RESPAN_API_KEY}",
        "headers": {"X-Respan-Route-Provider": "vertex_ai"},
    }
    assert provider["openai"]["options"]["baseURL"] == "https://api.respan.ai/api"


def test_packages_of_the_users_own_stay(user, place, home):
    """A folder that OpenCode has installed to is neither seeded nor cleaned."""
    folder = user / ".config" / "opencode"
    (folder / "node_modules" / "x").mkdir(parents=True)
    (folder / "package.json").write_text("{}")
    integrate(agent("opencode"), place, Options(), home)
    assert not (folder / "package-lock.json").exists()
    integrate(agent("opencode"), place, Options(), home, remove=True)
    assert (folder / "node_modules" / "x").is_dir()


def test_a_lock_file_that_others_wrote_to_is_theirs(user, place, home):
    """It is left, and said."""
    integrate(agent("opencode"), place, Options(), home)
    lock = user / ".config" / "opencode" / "package-lock.json"
    lock.write_text('{"lockfileVersion": 3, "packages": {"node_modules/x": {}}}')
    done = integrate(agent("opencode"), place, Options(), home, remove=True)
    assert lock.exists()
    assert any(str(lock) in remark for remark in done.remarks)


def test_opencodes_configuration_is_where_xdg_says(place, user, tmp_path, home):
    """And of several files the one that is there."""
    folder = tmp_path / "xdg" / "opencode"
    folder.mkdir(parents=True)
    (folder / "opencode.jsonc").write_bytes(JSONC)
    env = {"XDG_CONFIG_HOME": str(folder.parent)}
    where = Place(scope="global", home=user, project=place.project, env=env)
    integrate(agent("opencode"), where, Options(), home)
    assert b"opencode.js" in (folder / "opencode.jsonc").read_bytes()
    assert not (folder / "opencode.json").exists()
    assert everything_in(user) == {}


@pytest.mark.parametrize("slug", SLUGS)
def test_no_key_is_ever_written(slug, place, local, home, tmp_path):
    """Neither into a user's file nor into a project's, nor shown: only where it is found."""
    secret = "sk-fake-0123456789abcdef"
    file = tmp_path / "key"
    file.write_text(secret)
    file.chmod(0o600)
    env = {**place.env, "RESPAN_API_KEY": secret}
    for where in (place, local):
        for key in ("RESPAN_API_KEY", f"FILE:{file}"):
            here = Place(scope=where.scope, home=where.home, project=where.project, env=env)
            try:
                done = integrate(agent(slug), here, Options(gateway=("respan",), key=key), home)
            except IntegrateError:
                continue
            assert not any(secret in change.diff for change in done.changes)
    for folder in (place.home, place.project, home):
        for name, data in everything_in(folder).items():
            assert secret.encode() not in (data or b""), name
    assert resolve(f"FILE:{file}", {}) == secret


def test_a_key_itself_is_refused():
    """And not repeated."""
    result = run("claude", "--gateway", "respan", "--api-key-env", "sk-live-0123456789")
    assert result.returncode == 1
    assert "by reference" in result.stderr
    assert "sk-live" not in result.stderr + result.stdout


def test_a_key_file_that_others_can_read_is_refused(tmp_path, place, home):
    """With the command that mends it."""
    file = tmp_path / "key"
    file.write_text("k")
    file.chmod(0o644)
    with pytest.raises(IntegrateError, match="chmod 600"):
        integrate(agent("claude"), place, Options(key=f"FILE:{file}"), home)


def test_one_file_for_user_and_project_is_shared(user, place, home):
    """In the home folder both are one: what one gives up, the other keeps."""
    write(user, "gemini-cli")
    before = everything_in(user)
    here = Place(scope="local", home=user, project=user, env=place.env)
    integrate(agent("gemini"), place, RESPAN, home)
    once = everything_in(user)
    integrate(agent("gemini"), here, Options(tags={"a": "b"}), home)
    integrate(agent("gemini"), here, Options(), home, remove=True)
    assert everything_in(user) == once
    integrate(agent("gemini"), here, Options(tags={"a": "b"}), home)
    integrate(agent("gemini"), place, Options(), home, remove=True)
    assert b"tracebridge_hook" in (user / ".gemini" / "settings.json").read_bytes()
    integrate(agent("gemini"), here, Options(), home, remove=True)
    said = [EnvLines().parse(files[".gemini/.env"].decode()) for files in (before, once)]
    assert EnvLines().parse((user / ".gemini" / ".env").read_text()) == said[0] != said[1]
    assert read_json(user / ".gemini" / "settings.json") == {"telemetry": {"enabled": False}}
    assert not (user / ".gemini" / "respan.json").exists()


def test_options_are_remembered_until_they_change(user, place, home):
    """An upgrade's second `integrate` keeps the gateway; `--gateway none` gives it up."""
    write(user, "claude-code")
    path = user / ".claude" / "settings.json"
    integrate(agent("claude"), place, RESPAN, home)
    integrate(agent("claude"), place, Options(model="c/d"), home)
    written = read_json(path)
    assert (written["model"], written["env"]["ANTHROPIC_AUTH_TOKEN"]) == ("c/d", "")
    integrate(agent("claude"), place, Options(gateway=("none",)), home)
    written = read_json(path)
    assert written["env"]["ANTHROPIC_API_KEY"] == "theirs"
    assert written["apiKeyHelper"] == "theirs"
    assert not {"ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS"} & written["env"].keys()


def test_values_that_the_user_changed_are_the_users(user, place, home):
    """--remove leaves them."""
    integrate(agent("claude"), place, RESPAN, home)
    path = user / ".claude" / "settings.json"
    path.write_text(path.read_text().replace("https://api.respan.ai", "https://mine"))
    integrate(agent("claude"), place, Options(), home, remove=True)
    assert read_json(path) == {"env": {"ANTHROPIC_BASE_URL": "https://mine/api/anthropic"}}


def test_a_family_of_its_own_and_other_gateways(user, place, home):
    """A gateway of another layout is given by family; a version that Claude Code adds is dropped."""
    gateway = ("anthropic=https://llm.example/v1/", "openai=https://llm.example/v1")
    integrate(agent("claude"), place, Options(gateway=gateway), home)
    integrate(agent("codex"), place, Options(gateway=gateway), home)
    integrate(agent("opencode"), place, Options(gateway=gateway), home)
    env = read_json(user / ".claude" / "settings.json")["env"]
    assert env["ANTHROPIC_BASE_URL"] == "https://llm.example"
    config = tomllib.loads((user / ".codex" / "config.toml").read_text())
    # Without a key of its own, Codex keeps what it is logged in with.
    assert (config["openai_base_url"], "model_provider" in config) == (gateway[1][7:], False)
    provider = read_json(user / ".config/opencode/opencode.json")["provider"]
    assert provider["anthropic"]["options"] == {"baseURL": "https://llm.example/v1"}


@pytest.mark.parametrize(
    "words",
    [
        ("ftp://x",),
        ("https://u:p@x",),
        ("https://x?y",),
        ("nonsense",),
        ("none", "respan"),
        ("martian=https://x",),
        ("https://x y",),
    ],
)
def test_what_is_no_gateway_is_wrong_usage(words):
    """With what there is to choose from, and without the password."""
    result = run("claude", *(word for each in words for word in ("--gateway", each)))
    assert result.returncode == 2
    assert "--gateway" in result.stderr
    assert "u:p" not in result.stderr


def test_our_gateway_remembers_where_requests_went(user, place, home):
    """`tracebridge gateway` then stands in front of that."""
    path = user / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text('{"env": {"ANTHROPIC_BASE_URL": "https://llm.example"}}')
    for _ in range(2):
        done = integrate(agent("claude"), place, Options(gateway=("local",)), home)
        assert gateway_upstreams(home) == {"claude-code": "anthropic=https://llm.example"}
        assert any("tracebridge gateway" in remark for remark in done.remarks)
    assert read_json(path)["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4141/api/anthropic"
    integrate(agent("claude"), place, Options(), home, remove=True)
    assert gateway_upstreams(home) == {}


def test_where_requests_go_is_known_wherever_it_was_written(user, place, home):
    """What `run` and our gateway stand in front of is what integrate set up before."""
    for slug in SLUGS:
        write(user, slug)
        integrate(agent(slug), place, RESPAN, home)
    upstreams = {s: agent(s).upstream(place.env, place.home, place.project) for s in SLUGS}
    assert upstreams == {
        "claude-code": "anthropic=https://api.respan.ai/api/anthropic",
        "codex-cli": "openai=https://api.respan.ai/api",
        "gemini-cli": "gemini=https://api.respan.ai/api/google/gemini",
        "opencode": "anthropic=https://api.respan.ai/api/anthropic",
    }


def test_our_gateway_stands_in_front_of_that(place, home):
    """With nothing more than its name on the command line."""
    with ScriptedModel({"hi": [Reply((Text("Hello."),))]}) as model:
        env = {**place.env, "ANTHROPIC_BASE_URL": model.url}
        here = Place(scope="global", home=place.home, project=place.project, env=env)
        integrate(agent("claude"), here, Options(gateway=("local",)), home)
        command = [sys.executable, "-m", "tracebridge", "gateway", "--listen", "127.0.0.1:0"]
        with started(command, stdout=subprocess.PIPE, text=True) as gateway:
            url = gateway.stdout.readline().strip()
            body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
            answer = requests.post(f"{url}/api/anthropic/v1/messages", json=body, timeout=180)
        assert answer.json()["content"][0]["text"] == "Hello."


def test_a_file_that_changed_meanwhile_is_not_overwritten(user, place, home):
    """What was planned was planned for another one."""
    write(user, "claude-code")
    path = user / ".claude" / "settings.json"
    outcome, record = module._planned(agent("claude"), place, Options(), home, remove=False)
    path.write_text("{}")
    with pytest.raises(IntegrateError, match="somebody else"):
        module._carry_out(outcome.changes, record, home, remove=False)
    assert path.read_text() == "{}"


def test_plain_http_to_elsewhere_is_said(place, home):
    """Keys would go over the network as they are."""
    done = integrate(agent("claude"), place, Options(gateway=("http://llm.example",)), home)
    assert any("https" in remark for remark in done.remarks)
    done = integrate(agent("claude"), place, Options(gateway=("http://127.0.0.1:8",)), home)
    assert not any("https" in remark for remark in done.remarks)


@pytest.mark.parametrize("slug", SLUGS)
def test_twice_installed_is_said(slug, place, local, home):
    """For the user and for the project: each event would be told twice."""
    assert not any("twice" in r for r in integrate(agent(slug), place, Options(), home).remarks)
    assert any("twice" in r for r in integrate(agent(slug), local, Options(), home).remarks)


def test_the_plugin_beside_the_hooks_is_said(user, place, home):
    """With the command that disables it."""
    path = user / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text('{"enabledPlugins": {"tracebridge@tracebridge": true, "other@x": true}}')
    (remark,) = integrate(agent("claude"), place, Options(), home).remarks
    assert "claude plugin disable tracebridge@tracebridge" in remark


def test_the_plugin_has_the_same_hooks():
    """Each event by the same kind of hook, wherever the plugin lies."""
    from tracebridge.agents.claude_code.wiring import wire
    from tracebridge.integrate import hooks_directory

    folder = hooks_directory()
    script = '/bin/sh "${CLAUDE_PLUGIN_ROOT}/'
    commands = {
        "hook": f'{script}tracebridge_plugin.sh"',
        "hot": f'{script}tracebridge_hook.sh" claude-code',
    }
    assert read_json(folder / "hooks.json")["hooks"] == wire({}, commands)["hooks"]
    manifest = read_json(folder / ".claude-plugin" / "plugin.json")
    assert (folder / manifest["hooks"]).is_file()
    assert "version" not in manifest


@pytest.mark.parametrize("first_line", [None, "#!/usr/bin/env bash", f"#!{sys.executable}", ""])
def test_the_plugins_hook_fails_nobody(first_line, tmp_path, home):
    """Whatever the command `tracebridge` looks like; with no Python at all nothing is told."""
    from tracebridge.integrate import hooks_directory

    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sh", "python3"):
        (commands / name).symlink_to(sys.executable if name == "python3" else "/bin/sh")
    if first_line is not None:
        (commands / "tracebridge").write_text(f"{first_line}\n")
        (commands / "tracebridge").chmod(0o755)
    script = hooks_directory() / "tracebridge_plugin.sh"
    env = {"PATH": str(commands), "TRACEBRIDGE_HOME": str(home), "TRACEBRIDGE_NO_WATCH": "1"}
    for path in (str(commands), "/nowhere"):
        done = subprocess.run(
            ["/bin/sh", str(script)],
            env={**env, "PATH": path},
            input=b"{}",
            capture_output=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == (b"", b"")
        assert len(list((home / "spool" / "new").iterdir())) == 1


def test_tags_go_to_the_file_of_the_scope(user, local):
    """Known names have fields of their own, the rest is metadata; theirs stays."""
    theirs = local.project / ".claude" / "respan.json"
    theirs.parent.mkdir()
    theirs.write_text('{"span_name": "theirs", "customer_id": "old"}')
    options = ("--local", "--customer-id", "acme", "--attrs", '{"team": "blue", "n": [1]}')
    result = run("claude", *options, cwd=local.project)
    assert result.returncode == 0, result.stderr
    assert read_json(theirs) == {
        "span_name": "theirs",
        "customer_id": "acme",
        "team": "blue",
        "n": [1],
    }
    assert not (user / ".claude").exists()
    assert run("claude", "--local", "--remove", cwd=local.project).returncode == 0
    assert theirs.read_text() == '{"span_name": "theirs", "customer_id": "old"}'


@pytest.mark.parametrize("attrs", ["team=blue", "[1]", "{"])
def test_attributes_that_are_none_are_wrong_usage(attrs):
    """With how to write them."""
    result = run("claude", "--attrs", attrs)
    assert result.returncode == 2
    assert "--attrs" in result.stderr


def test_a_read_only_file_is_left_alone(user, place, home):
    """Also by root, who could: somebody meant it."""
    write(user, "gemini-cli")
    path = user / ".gemini" / ".env"
    path.chmod(0o444)
    before = everything_in(user)
    with pytest.raises(IntegrateError, match=r"chmod u\+w .*nothing was changed"):
        integrate(agent("gemini"), place, RESPAN, home)
    assert everything_in(user) == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


@pytest.mark.parametrize(
    ("slug", "name", "data"),
    [
        ("codex-cli", ".codex/config.toml", b"model = \n"),
        ("codex-cli", ".codex/config.toml", b'notify = "say"\n'),
        ("codex-cli", ".codex/config.toml", b'notify = ["x", 1]\n'),
        ("codex-cli", ".codex/hooks.json", b"{,}"),
        ("gemini-cli", ".gemini/settings.json", b'{"a": 1,}'),
        ("gemini-cli", ".gemini/settings.json", b'{"hooksConfig": {"enabled": false}}'),
        ("gemini-cli", ".gemini/.env", b"\xff\xfe"),
        ("opencode", ".config/opencode/opencode.json", b'{"plugin": {}}'),
        ("opencode", ".config/opencode/opencode.json", b'{"provider": []}'),
        ("claude-code", ".claude/settings.json", b'{"env": {"A": }}'),
    ],
)
def test_one_file_that_is_not_understood_leaves_all_alone(slug, name, data, place, home):
    """The message names it; no other file of the agent is touched either."""
    user = place.home
    path = user / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    before = everything_in(user)
    with pytest.raises(IntegrateError, match="nothing was changed") as refused:
        integrate(agent(slug), place, RESPAN, home)
    assert path.name in str(refused.value)
    assert everything_in(user) == before


def test_an_agent_that_cannot_be_set_up_stops_no_other(user):
    """Its message goes to stderr, and the exit code tells."""
    (user / ".claude").mkdir()
    (user / ".claude" / "settings.json").write_text("{")
    result = run("claude", "gemini")
    assert result.returncode == 1
    assert "settings.json" in result.stderr
    assert (user / ".gemini" / "settings.json").exists()


def test_all_are_those_that_are_installed(user, tmp_path, monkeypatch):
    """Found by their commands."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    assert run("--all").returncode == 2
    for name in ("gemini", "opencode"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    assert run("--all").returncode == 0
    assert sorted(path.name for path in user.iterdir()) == [".config", ".gemini"]
    assert run("--all", "--disable").returncode == 0
    assert list(user.iterdir()) == []


def test_a_dry_run_of_all_agents_shows_and_changes_nothing(user, home):
    """Diffs only."""
    for slug in SLUGS:
        write(user, slug)
    before = everything_in(user)
    result = run(*SLUGS, "--gateway", "respan", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert everything_in(user) == before
    assert not home.exists()
    for name in ("settings.json", "config.toml", "hooks.json", ".env", "opencode.jsonc"):
        assert f"{name}\n" in result.stdout


def test_racing_runs_for_all_agents_end_well(user):
    """Each waits for the other; everything is there once, and goes."""
    for slug in SLUGS:
        write(user, slug)
    before = everything_in(user)
    command = [sys.executable, "-m", "tracebridge", "integrate", *SLUGS, "--gateway", "respan"]
    quiet = subprocess.DEVNULL
    with ExitStack() as stack:
        racers = [
            stack.enter_context(started(command, stdout=quiet, stderr=quiet)) for _ in range(3)
        ]
        assert [racer.wait(180) for racer in racers] == [0, 0, 0]
    once = everything_in(user)
    assert run(*SLUGS).returncode == 0
    assert everything_in(user) == once
    assert run(*SLUGS, "--remove").returncode == 0
    assert everything_in(user) == before


def test_a_dangling_link_is_written_through(user, place, home):
    """The dotfiles may not be there yet."""
    real = user / "dotfiles" / "settings.json"
    link = user / ".claude" / "settings.json"
    link.parent.mkdir()
    link.symlink_to(real)
    integrate(agent("claude"), place, Options(), home)
    assert link.is_symlink()
    assert real.is_file()
    integrate(agent("claude"), place, Options(), home, remove=True)
    assert link.is_symlink()
    assert not real.parent.exists()
