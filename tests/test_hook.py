"""The hooks, run as an agent runs them: as processes, with a payload on stdin."""

import contextlib
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import termios
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tracebridge.model import GatewayCall, HookEvent
from tracebridge.spool import Spool, parse

HOOKS = Path(__file__).parent.parent / "hooks"
BARE_PYTHON = [sys.executable, "-I", "-S"]
PYTHON_HOOK = [*BARE_PYTHON, str(HOOKS / "tracebridge_hook.py")]
SHELLS = (["dash"], ["bash", "--posix"], ["busybox", "sh"], ["sh"])
SHELL_HOOKS = [
    [*shell, str(HOOKS / "tracebridge_hook.sh")] for shell in SHELLS if shutil.which(shell[0])
]
PATH = os.environ["PATH"]
PAYLOAD = b'{"hook_event_name":"Stop","session_id":"s-1"}'

either_hook = pytest.mark.parametrize(
    "hook", [PYTHON_HOOK, *SHELL_HOOKS], ids=["python", *(hook[0] for hook in SHELL_HOOKS)]
)


def run_hook(
    hook: Sequence[str],
    home: Path | None,
    payload: bytes | None = PAYLOAD,
    env: Mapping[str, str | bytes] | None = None,
    **options: object,
) -> None:
    """Run *hook* to its end and see that it did not fail and said nothing."""
    command = [*hook, "claude-code", *([str(home)] if home else [])]
    base = {"PATH": PATH, "HOME": "/nonexistent", "TRACEBRIDGE_NO_WATCH": "1"}
    env = base | dict(env or {})
    done = subprocess.run(
        command, input=payload, env=env, capture_output=True, check=False, **options
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def events(home: Path) -> list[HookEvent]:
    """Return what waits in the spool below *home*, and see that no unfinished file is left."""
    files = Spool(home).read()
    assert list((home / "spool" / "tmp").iterdir()) == []
    contents = [file.content for file in files]
    assert all(isinstance(content, HookEvent) for content in contents)
    return [content for content in contents if isinstance(content, HookEvent)]


def wait_until(condition, what: str) -> None:
    limit = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < limit, f"waited in vain for {what}"
        time.sleep(0.005)


def touched(path: Path) -> int:
    path.touch()
    return path.stat().st_mtime_ns


def closing(descriptors: str, hook: Sequence[str]) -> list[str]:
    """Return a command that runs *hook* with these descriptors closed."""
    return ["sh", "-c", f'exec "$@" {descriptors}', "sh", *hook]


@either_hook
def test_event_reaches_the_spool_whole(hook, home):
    """A payload arrives byte for byte, with agent, time, pid and the variables that are asked for."""
    payload = b'\0\0{"text":"\xff\xfe\0' + "naïve 🦊".encode() + b'"}\n'
    before = time.time_ns()

    run_hook(
        hook, home, payload, {"RESPAN_METADATA": '{"team":"a=b"}', "TRACEPARENT": "00-aa-bb-01"}
    )

    (event,) = events(home)
    assert event.agent == "claude-code"
    assert event.payload == payload
    assert event.payload_bytes == len(payload)
    assert before // 10**9 <= event.time_ns // 10**9 <= time.time_ns() // 10**9
    assert event.pid > 0
    assert event.env["RESPAN_METADATA"] == '{"team":"a=b"}'
    assert event.env["TRACEPARENT"] == "00-aa-bb-01"


@either_hook
def test_only_listed_variables_are_written(hook, home):
    """No variable that is not on the list reaches the disk, neither its name nor its value."""
    listed = {
        "AI_AGENT": "claude-code_2-1",
        "CLAUDE_CODE_ENTRYPOINT": "cli",
        "CLAUDE_PID": "17",
        "CLAUDE_PROJECT_DIR": "/work place",
        "RESPAN_CUSTOMER_ID": "c",
        "RESPAN_METADATA": "{}",
        "RESPAN_PROJECT_ID": "p",
        "RESPAN_SPAN_NAME": "s",
        "RESPAN_WORKFLOW_NAME": "w",
        "TRACEPARENT": "00-1-2-01",
    }
    names = (
        "ANTHROPIC_API_KEY RESPAN_API_KEY RESPAN_METADATA_2 CLAUDE_CODE_MESSAGING_TOKEN OTEL_X "
        "TRACEBRIDGE_GATEWAY_KEY TRACEBRIDGE_token TRACEBRIDGE_CLIENT_SECRET_FILE "
        "TRACEBRIDGE_PASSWORD TRACEBRIDGE_OTLP_HEADERS"
    )
    hidden = {name: f"hidden-{name}" for name in names.split()}

    run_hook(hook, home, env=listed | hidden | {"TRACEBRIDGE_CONTENT": "full"})

    (event,) = events(home)
    ours = {name for name in event.env if name.startswith("TRACEBRIDGE_")}
    assert {name: event.env[name] for name in event.env.keys() - ours} == listed
    if hook is PYTHON_HOOK:
        assert ours == {"TRACEBRIDGE_CONTENT", "TRACEBRIDGE_NO_WATCH"}
    (file,) = (home / "spool" / "new").iterdir()
    assert b"hidden" not in file.read_bytes()


@either_hook
def test_odd_values_do_no_harm(hook, home):
    """Bytes that are no UTF-8 and a huge value leave an event that can be read; 64 KB are kept."""
    run_hook(
        hook, home, env={"RESPAN_CUSTOMER_ID": b"a\xff\xfeb\n", "RESPAN_METADATA": "x" * 100_000}
    )

    (event,) = events(home)
    assert event.env["RESPAN_CUSTOMER_ID"] == "a\ufffd\ufffdb\n"
    assert event.env["RESPAN_METADATA"] == "x" * 65536
    assert event.payload == PAYLOAD


@either_hook
@pytest.mark.parametrize("payload", [b"", b"{", b"not json", b"\0" * 9, b"[" * 100_000])
def test_any_payload_is_taken(hook, home, payload):
    """What is not JSON, or nothing at all, is spooled as it is: to judge it is the watcher's part."""
    run_hook(hook, home, payload)

    (event,) = events(home)
    assert event.payload == payload


@either_hook
@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_nobody_else_can_read(hook, home, umask):
    """Folders are 0700 and files 0600 whatever the umask of the agent."""
    run_hook(hook, home, umask=umask)

    for path in [home, *home.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@either_hook
def test_names_sort_by_time(hook, home):
    """Files of hooks and of the gateway sort together, oldest first."""
    call = GatewayCall(
        call_id="c", gateway="tracebridge", method="POST", path="/", start_ns=1, end_ns=2
    )
    run_hook(hook, home, b"first")
    Spool(home).write_call(call)
    # Where the name tells no time, that of the file does, which is exact to a tick.
    written_ns = time.time_ns()
    wait_until(lambda: touched(home / "clock") > written_ns, "the next tick of the kernel")
    run_hook(hook, home, b"third")

    contents = [file.content for file in Spool(home).read()]

    assert [getattr(content, "payload", "call") for content in contents] == [
        b"first",
        "call",
        b"third",
    ]
    for path in (home / "spool" / "new").iterdir():
        assert re.fullmatch(r"(\d{20}-\d+-\d+|mtime-[0-9a-f-]{36})\.event", path.name)


@pytest.mark.parametrize("hook", [hook for hook in SHELL_HOOKS if hook[0] != "busybox"])
def test_shell_hook_runs_two_programs(hook, home, tmp_path):
    """One writes and one renames; nothing else is started where the folders are there."""
    run_hook(hook, home)
    log = tmp_path / "started"
    for program in ("cat", "mv", "date", "mkdir", "rm"):
        path = tmp_path / program
        path.write_text(f'#!/bin/sh\necho {program} >>{log}\nexec {shutil.which(program)} "$@"\n')
        path.chmod(0o755)
    run_hook(hook, home, env={"PATH": f"{tmp_path}:{PATH}"})
    assert log.read_text().split() == ["cat", "mv"]
    assert len(events(home)) == 2


@either_hook
def test_sixteen_hooks_at_once_lose_nothing(hook, home):
    """Each of sixteen hooks that run at the same time leaves its own event, whole."""
    payloads = [bytes([65 + number]) * 200_000 for number in range(16)]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda payload: run_hook(hook, home, payload), payloads))

    assert sorted(event.payload for event in events(home)) == payloads


@either_hook
def test_home_in_the_environment_wins(hook, home, tmp_path):
    """TRACEBRIDGE_HOME wins over the home that was named when the hook was installed."""
    run_hook(hook, tmp_path / "other", env={"TRACEBRIDGE_HOME": str(home)})

    assert len(events(home)) == 1
    assert not (tmp_path / "other").exists()


@either_hook
def test_relative_home_is_below_the_working_directory(hook, tmp_path):
    """A relative home is taken from where the agent works."""
    run_hook(hook, Path("near by"), cwd=tmp_path)

    assert len(events(tmp_path / "near by")) == 1


@either_hook
@pytest.mark.parametrize(
    "env",
    [
        {"HOME": "{user}"},
        {"HOME": "{user}/"},
        {"HOME": "{user}", "XDG_STATE_HOME": "{user}/state"},
        {"HOME": "{user}", "XDG_STATE_HOME": ""},
    ],
)
def test_default_home_is_that_of_the_package(hook, tmp_path, env):
    """Without any setting the hook writes to where the package reads."""
    env = {name: value.format(user=tmp_path) for name, value in env.items()}
    ask = "import platformdirs; print(platformdirs.user_state_path('tracebridge'), end='')"
    answer = subprocess.run(
        [sys.executable, "-c", ask], env=env, capture_output=True, check=True, text=True
    )

    run_hook(hook, None, env=env)

    assert len(events(Path(answer.stdout))) == 1


@pytest.mark.parametrize("env", [{}, {"HOME": ""}, {"HOME": "here"}])
def test_default_home_without_a_home(env):
    """Where HOME says nothing, hook and package both ask the user database."""
    package = "import platformdirs; print(platformdirs.user_state_path('tracebridge'), end='')"
    hook = (
        f"import sys; sys.path.insert(0, {str(HOOKS)!r}); import tracebridge_hook_main as hook;"
        "print(hook.default_home().decode(), end='')"
    )
    answers = [
        subprocess.run(
            [*python, "-c", ask], env=env, capture_output=True, check=True, text=True
        ).stdout
        for python, ask in ((BARE_PYTHON, hook), ([sys.executable], package))
    ]

    assert answers[0] == answers[1]


@either_hook
@pytest.mark.parametrize(
    "env",
    [
        {"HOME": "/proc/nothing"},
        {"HOME": ""},
        {"TRACEBRIDGE_HOME": "/proc/nothing"},
        {"TRACEBRIDGE_HOME": "/dev/null"},
        {"TRACEBRIDGE_HOME": "/" + "x" * 5000},
    ],
)
def test_impossible_home_is_no_error(hook, env, tmp_path):
    """Where nothing can be written the hook stays silent all the same."""
    # Keep the user database's answer to an empty HOME out of it.
    run_hook(hook, None, b"x" * 300_000, {"XDG_STATE_HOME": "/proc/nothing", **env}, cwd=tmp_path)


@either_hook
def test_agent_never_finds_a_broken_pipe(hook, home):
    """The hook reads what the agent writes even where it cannot keep it."""
    home.touch()
    command = [*hook, "claude-code", str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={"PATH": PATH}) as process:
        assert process.stdin
        process.stdin.write(b"x" * 1_000_000)

    assert process.returncode == 0


@either_hook
@pytest.mark.parametrize("place", [".", "spool", "spool/new", "spool/tmp"])
def test_file_in_place_of_a_folder_is_no_error(hook, home, place):
    """A file where a folder should be is left as it is."""
    path = home / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")

    run_hook(hook, home, b"x" * 300_000)

    assert path.read_text() == "mine"


@either_hook
@pytest.mark.parametrize("place", ["spool", "spool/new", "spool/tmp"])
def test_links_inside_the_home_are_not_followed(hook, home, tmp_path, place):
    """A link that somebody put in the place of a spool folder leads no event away."""
    Spool(home).create()
    elsewhere = tmp_path / "elsewhere"
    (home / place).rename(elsewhere)
    (home / place).symlink_to(elsewhere)

    run_hook(hook, home, b"x" * 300_000)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@either_hook
def test_home_may_be_a_link(hook, home, tmp_path):
    """Whoever wants the spool on another disk links the home."""
    (tmp_path / "disk").mkdir()
    home.symlink_to(tmp_path / "disk")

    run_hook(hook, home)

    assert len(events(tmp_path / "disk")) == 1


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path | None]:
    """Mount a disk of 256 KB, or give None to a user who may not."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(path)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    yield path
    subprocess.run(["umount", str(path)], check=True)


@either_hook
@pytest.mark.parametrize(("room", "payload"), [(0, b""), (0, PAYLOAD), (16384, b"x" * 100_000)])
def test_full_disk_leaves_no_part_of_an_event(hook, mounted, tmp_path, room, payload):
    """On a full disk there is neither an error nor a file, and with room again events arrive."""
    home = mounted or tmp_path / "home"
    Spool(home).create()
    limited = list(hook)
    filler = home / "filler"
    if mounted:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 4096)
        os.truncate(filler, filler.stat().st_size - room)
    else:
        limit = (
            "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {resource.RLIM_INFINITY}));"
            "os.execvp(sys.argv[1], sys.argv[1:])"
        )
        limited = [sys.executable, "-c", limit, *hook]

    run_hook(limited, home, payload)

    assert events(home) == []
    filler.unlink(missing_ok=True)
    run_hook(hook, home)
    assert [event.payload for event in events(home)] == [PAYLOAD]


@either_hook
def test_read_only_disk_is_no_error(hook, mounted, tmp_path):
    """A disk that cannot be written to leaves the hook silent."""
    home = mounted or tmp_path / "home"
    Spool(home).create()
    if mounted:
        subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    else:
        for folder in (home, home / "spool" / "new", home / "spool" / "tmp"):
            folder.chmod(0o500)

    run_hook(hook, home, b"x" * 300_000, {"TRACEBRIDGE_NO_WATCH": "0"})

    assert events(home) == []
    assert [path.name for path in home.iterdir()] == ["spool"]


@either_hook
def test_closed_stdout_and_stderr_are_no_error(hook, home):
    """An agent that gives the hook no stdout and no stderr gets its event spooled."""
    run_hook(closing(">&- 2>&-", hook), home)

    assert [event.payload for event in events(home)] == [PAYLOAD]


@either_hook
@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_closed_stdin_is_no_error(hook, home, closed):
    """Without a stdin there is no payload; the Python hook still tells that it was called."""
    run_hook(closing(closed, hook), home)

    assert [event.payload for event in events(home)] == ([b""] if hook is PYTHON_HOOK else [])


@pytest.mark.parametrize("payload", [b"", PAYLOAD, b"x" * 300_000])
def test_stdin_that_stays_open_is_not_waited_for(home, payload):
    """An agent that never closes stdin, as Claude Code after /clear, gets its hook back."""
    reader, writer = os.pipe()
    # All of it is there from the beginning: between two pieces the hook waits only for a moment.
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 19)
    assert os.write(writer, payload) == len(payload)
    command = [*PYTHON_HOOK, "claude-code", str(home)]
    with os.fdopen(reader) as stdin, os.fdopen(writer):
        subprocess.run(
            command, stdin=stdin, env={"TRACEBRIDGE_NO_WATCH": "1"}, timeout=180, check=True
        )

    (event,) = events(home)
    assert (event.payload, event.payload_bytes) == (payload, len(payload))


@pytest.mark.parametrize("size", [20 << 20, 70 << 20])
def test_huge_payload_is_cut(home, size, tmp_path):
    """Of a payload 10 MB are kept and its size is told; what goes beyond 64 MB is not even read."""
    # From a file, since nobody is waited for that takes turns with the hook for seconds.
    with (tmp_path / "payload").open("w+b") as payload:
        payload.write(b"x" * size)
        payload.seek(0)
        run_hook(PYTHON_HOOK, home, None, stdin=payload)

    (event,) = events(home)
    assert event.payload == b"x" * (10 << 20)
    assert min(size, 64 << 20) <= event.payload_bytes <= min(size, 65 << 20)


@pytest.mark.parametrize("hook", SHELL_HOOKS, ids=[hook[0] for hook in SHELL_HOOKS])
def test_shell_hook_keeps_a_huge_payload(hook, home):
    """The shell twin cuts nothing."""
    run_hook(hook, home, b"x" * (20 << 20))

    (event,) = events(home)
    assert len(event.payload) == event.payload_bytes == 20 << 20


def test_nothing_is_imported_from_the_working_directory(home, tmp_path):
    """A project with a json.py or a select.py of its own does not run code in the hook."""
    project = tmp_path / "project"
    project.mkdir()
    trap = f"open({str(tmp_path / 'trapped')!r}, 'w').close()"
    names = [
        "json",
        "select",
        "fcntl",
        "posix",
        "time",
        "os",
        "tracebridge_hook_main",
        "tracebridge",
    ]
    for name in names:
        (project / f"{name}.py").write_text(trap)

    run_hook(PYTHON_HOOK, home, cwd=project, env={"PYTHONPATH": str(project)})

    assert len(events(home)) == 1
    assert not (tmp_path / "trapped").exists()


def test_hook_imports_next_to_nothing(home):
    """Beyond what a bare interpreter loads, the hook loads two small modules."""
    home.mkdir()

    def imported(*arguments: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-X", "importtime", *arguments],
            input=PAYLOAD,
            capture_output=True,
            check=True,
            env={},
        )
        lines = done.stderr.decode().splitlines()
        return {line.rpartition("|")[2].strip() for line in lines if line.count("|") == 2}

    with (home / "watch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with_hook = imported(PYTHON_HOOK[-1], "claude-code", str(home))

    assert len(events(home)) == 1
    assert with_hook - imported("-c", "pass") <= {
        "tracebridge_hook_main",
        "select",
        "fcntl",
        "time",
    }


def test_damaged_compiled_form_is_no_obstacle(home, tmp_path):
    """A compiled form that a power cut left half written does not silence the hook."""
    hooks = shutil.copytree(HOOKS, tmp_path / "hooks", ignore=shutil.ignore_patterns("*.pyc"))
    hook = [*BARE_PYTHON, str(hooks / "tracebridge_hook.py")]
    run_hook(hook, home)
    (compiled,) = hooks.rglob("*.pyc")
    os.truncate(compiled, compiled.stat().st_size // 2)

    run_hook(hook, home)

    assert len(events(home)) == 2


def test_hook_without_its_module_is_no_error(home, tmp_path):
    """Half an installation is silent too."""
    shutil.copy(HOOKS / "tracebridge_hook.py", tmp_path)

    run_hook([*BARE_PYTHON, str(tmp_path / "tracebridge_hook.py")], home)

    assert not home.exists()


STAND_IN = """
import fcntl, json, os, signal, sys
lock = int(sys.argv[3])
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
home = os.environ["TRACEBRIDGE_HOME"]
told = {
    "argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid(),
    "session": os.getsid(0),
    "stdio": [os.stat(n).st_rdev == os.stat(os.devnull).st_rdev for n in (0, 1)],
}
name = f"{home}/started-{os.getpid()}"
with open(name + ".part", "w") as stream:
    json.dump(told, stream)
os.rename(name + ".part", name)
signal.pause()
"""


class Installation:
    """An interpreter whose `tracebridge` is a stand-in that tells how it was started and waits.

    So these tests prove what the hook hands to a watcher (command, environment, lock, no pipe of
    the agent) and how many it starts; not that the real watcher makes good use of it.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        builder = venv.EnvBuilder(symlinks=True)
        builder.create(folder)
        self.python = folder / "bin" / "python"
        self.home = home
        self._packages = next(folder.glob("lib/python*/site-packages"))
        self.hook = [str(self.python), "-I", "-S", PYTHON_HOOK[-1]]

    def add_package(self) -> None:
        package = self._packages / "tracebridge"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(STAND_IN)

    def run_hook(self, env: Mapping[str, str] | None = None, **options: object) -> None:
        env = {"TRACEBRIDGE_NO_WATCH": "", **(env or {})}
        run_hook(self.hook, self.home, env=env, **options)

    def started(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in self.home.glob("started-*[0-9]")]

    def wait_for_start(self) -> dict:
        wait_until(self.started, "a watcher")
        (told,) = self.started()
        return told

    def lock_is_held(self) -> bool:
        with (self.home / "watch.lock").open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def stop(self) -> None:
        for told in self.started():
            os.kill(told["pid"], signal.SIGKILL)
        wait_until(lambda: not self.lock_is_held(), "the end of the watcher")
        for path in self.home.glob("started-*"):
            path.unlink()


@pytest.fixture
def installation(tmp_path: Path, home: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path / "venv", home)
    yield installation
    if (home / "watch.lock").exists():
        installation.stop()


def test_first_event_starts_a_watcher(installation, home):
    """The watcher gets the lock, its home and its settings; of the agent's keys it learns none."""
    installation.add_package()
    wanted = {
        "PATH": PATH,
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318",
        "RESPAN_API_KEY": "k",
        "TRACEBRIDGE_CONTENT": "full",
        "XDG_CONFIG_HOME": "/c",
        "https_proxy": "http://localhost:1",
        "SSL_CERT_FILE": "/s",
    }

    installation.run_hook(
        wanted | {"ANTHROPIC_API_KEY": "x", "PYTHONPATH": "/x", "CLAUDECODE": "1"}
    )

    told = installation.wait_for_start()
    assert told["argv"][:2] == ["watch", "--lock-fd"]
    assert installation.lock_is_held()
    started_with = {"TRACEBRIDGE_HOME": str(home), "TRACEBRIDGE_NO_WATCH": ""}
    # Python itself may set LC_CTYPE.
    assert {n: v for n, v in told["env"].items() if n != "LC_CTYPE"} == wanted | started_with
    assert told["cwd"] == "/"
    assert told["stdio"] == [True, True]
    assert told["session"] != os.getsid(0)
    assert len(events(home)) == 1


def test_watcher_is_told_an_absolute_home(installation, home):
    """A relative home means the same to the watcher, which works elsewhere, as to the hook."""
    installation.add_package()

    installation.run_hook({"TRACEBRIDGE_HOME": home.name}, cwd=home.parent)

    assert installation.wait_for_start()["env"]["TRACEBRIDGE_HOME"] == str(home)


def test_sixteen_hooks_at_once_start_one_watcher(installation, home):
    """However many hooks run at the same time, one watcher is started and no event is lost."""
    installation.add_package()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: installation.run_hook(), range(16)))

    installation.wait_for_start()
    assert len(events(home)) == 16


def test_watcher_holds_nothing_of_the_agent(installation):
    """The agent sees the end of every pipe that it gave the hook while the watcher lives on."""
    installation.add_package()
    reader, writer = os.pipe()

    # That run_hook returns shows it for stdout and stderr: it reads both to their end.
    installation.run_hook(pass_fds=[writer])

    os.close(writer)
    installation.wait_for_start()
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert installation.lock_is_held()


def test_watcher_starts_without_the_three_standard_descriptors(installation, home):
    """The lock survives even where its descriptor is a number that belongs to stdin."""
    installation.add_package()
    # With no spool to open, the lock is the first file that the hook keeps open.
    home.mkdir()
    (home / "spool").touch()
    installation.hook = closing("<&- >&- 2>&-", installation.hook)

    installation.run_hook()

    assert installation.wait_for_start()["stdio"] == [True, True]
    assert installation.lock_is_held()


def test_living_watcher_is_left_alone(installation, home):
    """While a watcher holds the lock no other is started."""
    installation.add_package()
    home.mkdir()
    with (home / "watch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        installation.run_hook()

        assert (home / "watch.lock").stat().st_size == 0
    assert len(events(home)) == 1


def test_broken_installation_is_not_started_again_at_once(installation, home):
    """A watcher that cannot start is tried again after ten seconds, not at every event."""
    installation.run_hook()
    wait_until(lambda: not installation.lock_is_held(), "the end of the failed start")
    wait_until(lambda: "No module named" in (home / "watch.log").read_text(), "the reason")
    # However long that took.
    os.utime(home / "watch.lock")
    first_start = (home / "watch.lock").stat().st_mtime_ns

    installation.run_hook()
    assert (home / "watch.lock").stat().st_mtime_ns == first_start
    assert not installation.lock_is_held()

    long_ago = first_start - 11 * 10**9
    os.utime(home / "watch.lock", ns=(long_ago, long_ago))
    installation.add_package()
    installation.run_hook()
    installation.wait_for_start()
    assert (home / "watch.lock").stat().st_mtime_ns >= first_start
    assert len(events(home)) == 3


def test_start_can_be_switched_off(installation, home):
    """With TRACEBRIDGE_NO_WATCH=1 events are spooled and nothing else is done."""
    installation.add_package()

    installation.run_hook({"TRACEBRIDGE_NO_WATCH": "1"})

    assert [path.name for path in home.iterdir()] == ["spool"]


@pytest.mark.parametrize("hook", SHELL_HOOKS, ids=[hook[0] for hook in SHELL_HOOKS])
def test_shell_hook_starts_nothing(hook, home):
    """The shell twin leaves starting a watcher to the Python hook."""
    run_hook(hook, home, env={"TRACEBRIDGE_NO_WATCH": ""})

    assert [path.name for path in home.iterdir()] == ["spool"]


def test_interrupted_hook_says_nothing(home):
    """Ctrl-C in the terminal, which reaches the hook as well, makes it neither fail nor talk."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*PYTHON_HOOK, "claude-code", str(home)],
        stdin=reader,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"TRACEBRIDGE_NO_WATCH": "1"},
    )
    os.write(writer, PAYLOAD)
    # Once the pipe is empty the hook is past the start of the interpreter.
    os.set_blocking(reader, False)

    def taken() -> bool:
        waiting = bytearray(4)
        fcntl.ioctl(reader, termios.FIONREAD, waiting)
        return not any(waiting)

    wait_until(taken, "the hook to read")
    process.send_signal(signal.SIGINT)

    assert process.communicate(timeout=180) == (b"", b"")
    assert process.returncode == 0
    os.close(reader)
    os.close(writer)


def test_event_can_be_parsed_from_its_bytes(home):
    """What the hook writes is what `tracebridge.spool` describes."""
    run_hook(PYTHON_HOOK, home)

    (file,) = (home / "spool" / "new").iterdir()
    event = parse(file.read_bytes(), 0)
    assert isinstance(event, HookEvent)
    assert f"{event.time_ns:020d}-{event.pid}-0.event" == file.name
