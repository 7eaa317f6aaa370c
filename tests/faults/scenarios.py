# ruff: noqa: D401 - what a fault is, is no command
"""The faults, one function each: what it does to real processes, and what came of it.

Each gets the world, a seeded source of chance and whether a short version will do, and returns
its figures. All that is random comes from *chance*, so a seed repeats a run.
"""

from __future__ import annotations

import base64
import ctypes
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import trustme
from claude_files import Claude, at, said
from faults.world import LIMIT_S, Figures, SpanId, Stepper, World, agent_run, contents

from tracebridge.codec import encode
from tracebridge.delivery import deliver
from tracebridge.ids import root_span_id, span_id, trace_id
from tracebridge.model import CallIdentity, GatewayCall, HookEvent
from tracebridge.settings import read_settings
from tracebridge.sinks import OutboxSpan, Receipt
from tracebridge.spool import Spool, SpoolFile, SpoolFileError
from tracebridge.store import FILE
from tracebridge.testing.receiver import Answer, ReceivedRequest, Receiver
from tracebridge.watch_lock import is_watched
from tracebridge.watcher import Watcher

KILLED = -signal.SIGKILL
DAY_NS = 86_400 * 10**9
HOOKS = Path(__file__).resolve().parents[2] / "hooks" / "tracebridge_hook"
OLD_STORE = Path(__file__).with_name("store_version_1.sql")

Scenario = Callable[[World, random.Random, bool], Figures]


def watcher_killed_at_every_step(world: World, chance: random.Random, short: bool) -> Figures:
    """Before and after each unlink, commit and request, the last ones with small batches."""
    figures = Figures(name="watcher killed at every step")
    home = world.new_home()
    with Receiver() as receiver:
        steps = world.watch_once(home, receiver, batch=5).steps
    world.drop(home)
    for number in chosen(steps, chance, short=short):
        home = world.new_home()
        with Receiver() as receiver:
            # The last steps are not always reached: how often is looked depends on the time.
            died = world.watch_once(home, receiver, batch=5, die_at=number).code == KILLED
            arrives(world, home, receiver)
            figures.add(world.expected, receiver.spans, faults=int(died), may_resend=True)
        world.drop(home)
    figures.remark = f"{len(set(steps))} kinds of step"
    return figures


def chosen(steps: Sequence[str], chance: random.Random, *, short: bool) -> list[int]:
    """Return which steps to die at: all, or of each kind the first, the last and some between."""
    if not short:
        return list(range(1, len(steps) + 1))
    numbers: set[int] = set()
    for kind in set(steps):
        places = [number for number, step in enumerate(steps, 1) if step == kind]
        numbers |= {places[0], places[-1], chance.choice(places)}
    return sorted(numbers)


def arrives(world: World, home: Path, receiver: Receiver) -> None:
    """Let an undisturbed watcher deliver all that is left."""
    ended = world.watch_once(home, receiver)
    assert ended.code == 0, ended.said


def watcher_killed_at_random(world: World, chance: random.Random, short: bool) -> Figures:
    """A watcher that runs on, killed at any moment while events come in."""
    figures = Figures(name="watcher killed at random")
    home = world.new_home(filled=False)
    spool = Spool(home)
    spool.create()
    # As they happen: no agent tells of a turn's end before its calls are answered.
    waiting = sorted(Spool(world.template).read(), key=moment_of)
    events = [file.path for file in waiting]
    with Receiver() as receiver:
        env = world.env(home, receiver.endpoint)
        for _ in range(4 if short else 40):
            with running_watcher(env) as watcher:
                for _ in range(min(len(events), chance.randint(1, 20))):
                    event = events.pop(0)
                    shutil.copy2(event, home / "spool" / "tmp" / event.name)
                    (home / "spool" / "tmp" / event.name).rename(spool.new / event.name)
                # The moment of death; nothing waits for it.
                time.sleep(chance.uniform(0.0, 0.9))
                watcher.kill()
                watcher.wait()
            figures.faults += 1
        for event in events:
            shutil.copy2(event, spool.new / event.name)
        arrives(world, home, receiver)
        figures.add(world.expected, receiver.spans, faults=0, may_resend=True)
    return figures


def moment_of(file: SpoolFile) -> int:
    content = file.content
    assert not isinstance(content, SpoolFileError)
    return content.end_ns if isinstance(content, GatewayCall) else content.time_ns


@contextmanager
def running_watcher(env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tracebridge", "watch"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=env,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def hook_killed_at_every_step(world: World, chance: random.Random, short: bool) -> Figures:
    """An event is in the spool whole or not at all, and the transcript tells what it lacks."""
    figures = Figures(name="hook killed at every step")
    events = hooks_of(world, "0-session")
    for index, killed in enumerate(events):
        if short and index < len(events) - 1:
            continue
        home = world.new_home(filled=False)
        steps = [run_hook(world, home, event).steps for event in events[: index + 1]][-1]
        world.drop(home)
        for number in chosen(steps, chance, short=short):
            home = world.new_home(filled=False)
            for event in events:
                die_at = number if event is killed else None
                ended = run_hook(world, home, event, die_at=die_at)
                assert ended.code == (KILLED if event is killed else 0)
            payloads = {event.payload for event in events}
            for file in Spool(home).read():
                whole = isinstance(file.content, HookEvent) and file.content.payload in payloads
                figures.differing += not whole
            with Receiver() as receiver:
                arrives(world, home, receiver)
                expected = {i: b"" for i in world.expected if i[0] == trace_of(0)}
                add_ids(figures, expected, receiver)
            world.drop(home)
    figures.remark = "ids; what the killed hook knew is missing"
    return figures


def hooks_killed_at_random(world: World, chance: random.Random, short: bool) -> Figures:
    """The real hooks, Python's and sh's, at any moment: what is in the spool is whole."""
    figures = Figures(name="hooks killed at random")
    payload = json.dumps({"session_id": "s", "text": "x" * 300_000}).encode()
    killed = 0
    for command in ([sys.executable, "-I", "-S", f"{HOOKS}.py"], ["/bin/sh", f"{HOOKS}.sh"]):
        home = world.new_home(filled=False)
        for attempt in range(15 if short else 150):
            with subprocess.Popen(
                [*command, "claude-code"], stdin=subprocess.PIPE, env=world.env(home)
            ) as process:
                assert process.stdin is not None
                if attempt == 0:
                    # While it waits for what it is to be told: this one dies for sure.
                    process.kill()
                threading.Timer(chance.uniform(0, 0.01), process.kill).start()
                with suppress(BrokenPipeError):
                    process.communicate(payload)
                killed += process.returncode == KILLED
        for file in Spool(home).read():
            whole = isinstance(file.content, HookEvent) and file.content.payload == payload
            figures.differing += not whole
        # The home stays: what a killed sh had started may still be at work in it.
    figures.faults = killed
    figures.remark = "no file is torn; what the killed hook knew is missing"
    return figures


def hooks_of(world: World, session_id: str) -> list[HookEvent]:
    contents = [file.content for file in Spool(world.template).read()]
    hooks = [each for each in contents if isinstance(each, HookEvent)]
    return [hook for hook in hooks if session_id.encode() in hook.payload]


def run_hook(world: World, home: Path, event: HookEvent, **details: int | None):
    return world.stepper.order(
        "hook",
        world.env(home),
        agent=event.agent,
        payload=base64.b64encode(event.payload).decode(),
        time_ns=event.time_ns,
        **details,
    )


def trace_of(number: int) -> str:
    return trace_id("claude-code", f"{number}-session", f"turn-{number}")


def add_ids(figures: Figures, expected: dict[SpanId, bytes], receiver: Receiver) -> None:
    """Compare the ids alone."""
    arrived = [(span.trace_id, span.span_id) for span in receiver.spans]
    figures.faults += 1
    figures.expected += len(expected)
    figures.lost += len(expected.keys() - set(arrived))
    figures.duplicated += len(arrived) - len(expected.keys() & set(arrived))


def gateway_killed(world: World, chance: random.Random, short: bool) -> Figures:
    """A call is recorded whole or not at all, and the transcript tells what is not."""
    del chance, short
    figures = Figures(name="gateway killed while it records")
    calls = [
        file.content
        for file in Spool(world.template).read()
        if isinstance(file.content, GatewayCall) and file.content.call_id.startswith("call-0")
    ]
    template = world.new_home(filled=False)
    Spool(template).create()
    for file in Spool(world.template).read():
        if isinstance(file.content, HookEvent) and b"0-session" in file.content.payload:
            shutil.copy2(file.path, template / "spool" / "new")
    expected = {i: b"" for i in world.expected if i[0] == trace_of(0)}
    home = copy_of(world, template)
    steps = write_call(world, home, calls[0]).steps
    world.drop(home)
    for number in range(1, len(steps) + 1):
        home = copy_of(world, template)
        assert write_call(world, home, calls[0], die_at=number).code == KILLED
        assert write_call(world, home, calls[1]).code == 0
        for file in Spool(home).read():
            if isinstance(file.content, GatewayCall):
                figures.differing += encode(file.content) not in map(encode, calls)
        with Receiver() as receiver:
            arrives(world, home, receiver)
            add_ids(figures, expected, receiver)
        world.drop(home)
    figures.remark = "ids; what the killed gateway saw is missing"
    return figures


def gateway_killed_in_mid_stream(world: World, chance: random.Random, short: bool) -> Figures:
    """A real gateway in the middle of an answer, after one that is whole; the transcript goes on."""
    figures = Figures(name="gateway killed in mid-stream")
    pieces = [*range(len(STREAM) + 1)]
    for stop_at in chance.sample(pieces, 3) if short else pieces:
        home = world.new_home(filled=False)
        claude = Claude(home, world.folder, session=f"s-{home.name}", turn="streamed")
        trace = trace_id("claude-code", claude.session, claude.turn)
        names = [f"{home.name}_{number}" for number in range(2)]
        kept = [root_span_id(trace), *(span_id(trace, "llm", name) for name in names)]
        claude.hook(seconds_now(), "UserPromptSubmit", prompt="stream it")
        claude.prompt_line(seconds_now(), "stream it")
        with streaming_model(stop_at) as url, Receiver() as receiver:
            gateway = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tracebridge", "gateway", "--listen", "127.0.0.1:0"),
                    *("--upstream", f"anthropic={url}"),
                ],
                stdout=subprocess.PIPE,
                text=True,
                env=world.env(home),
            )
            try:
                assert gateway.stdout is not None
                address = urlsplit(gateway.stdout.readline().strip())
                began = seconds_now()
                with asked(address, claude, names[0], len(STREAM), end=b"\r\n0\r\n\r\n") as whole:
                    assert b"message_stop" in whole
                if chance.random() < 0.5:
                    # Recorded, beside the one hook event; else perhaps not yet.
                    wait_until(lambda home=home: Spool(home).depth() == 2)
                claude.answer_line(seconds_now(), names[0], said("first"), began=began)
                began = seconds_now()
                with asked(address, claude, names[1], stop_at, end=b"\r\n\r\n"):
                    # Before the client goes: that would be the end of its call.
                    gateway.kill()
                    gateway.wait()
            finally:
                gateway.kill()
                gateway.communicate()
            for file in Spool(home).read():
                figures.differing += isinstance(file.content, SpoolFileError)
            claude.answer_line(seconds_now(), names[1], said("done"), began=began)
            claude.hook(seconds_now(), "Stop", last_assistant_message="done", background_tasks=[])
            arrives(world, home, receiver)
            add_ids(figures, {(trace, each): b"" for each in kept}, receiver)
        world.drop(home)
    figures.remark = "ids; what the killed gateway saw is missing"
    return figures


def seconds_now() -> float:
    """Return the time as `claude_files` counts it."""
    return (time.time_ns() - at(0)) / 10**9


STREAM = (
    'message_start {"message": {"id": "NAME", "model": "m", "usage": {"input_tokens": 1}}}',
    'content_block_start {"index": 0, "content_block": {"type": "text", "text": ""}}',
    'content_block_delta {"index": 0, "delta": {"type": "text_delta", "text": "done"}}',
    'content_block_stop {"index": 0}',
    'message_delta {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}',
    "message_stop {}",
)


@contextmanager
def streaming_model(stop_at: int) -> Iterator[str]:
    """Answer a first call in full, and of the others only so many events, then no more."""
    asked = itertools.count()
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            name = json.loads(self.rfile.read(int(self.headers["content-length"])))["name"]
            events = STREAM if next(asked) == 0 else STREAM[:stop_at]
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for event in events:
                kind, _, data = event.partition(" ")
                facts = {"type": kind, **json.loads(data.replace("NAME", name))}
                said = f"event: {kind}\ndata: {json.dumps(facts)}\n\n".encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(said), said))
            if events is STREAM:
                self.wfile.write(b"0\r\n\r\n")
            else:
                over.wait(LIMIT_S)
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def asked(
    address: SplitResult, claude: Claude, name: str, events: int, *, end: bytes
) -> Iterator[bytes]:
    """Ask through the gateway and give what was said once so many events have come."""
    body = json.dumps({"model": "m", "stream": True, "name": name}).encode()
    head = (
        f"POST {address.path.rstrip('/')}/api/anthropic/v1/messages HTTP/1.1\r\n"
        f"Host: {address.netloc}\r\nContent-Length: {len(body)}\r\n"
        f"X-Claude-Code-Session-Id: {claude.session}\r\n"
        f"x-claude-code-prompt-id: {claude.turn}\r\n\r\n"
    )
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 0), LIMIT_S) as connection:
        connection.sendall(head.encode() + body)
        told = b""
        while told.count(b"event: ") < events or end not in told:
            piece = connection.recv(65536)
            assert piece, told
            told += piece
        yield told


def write_call(world: World, home: Path, call: GatewayCall, **details: int | None):
    payload = base64.b64encode(encode(call)).decode()
    return world.stepper.order("write_call", world.env(home), payload=payload, **details)


def power_cut(world: World, chance: random.Random, short: bool) -> Figures:
    """Of the last file, the name is on the disk and its bytes are not, or only some of them."""
    figures = Figures(name="power cut, last spool file torn")
    names = sorted(os.listdir(world.template / "spool" / "new"))
    ours = [name for name in names if name.split("-", 1)[1].startswith("0-sessi")]
    torn_session = trace_of(0)
    for name in ours[-1:] if short else ours:
        whole = (world.template / "spool" / "new" / name).read_bytes()
        cuts = {0, 1, whole.index(b"\0\0"), whole.index(b"\0\0") + 2, len(whole) - 1}
        for cut in sorted(cuts | {chance.randrange(len(whole)) for _ in range(2 if short else 8)}):
            for padding in (b"", b"\0" * (len(whole) - cut)):
                home = world.new_home()
                (home / "spool" / "new" / name).write_bytes(whole[:cut] + padding)
                with Receiver() as receiver:
                    arrives(world, home, receiver)
                    others = {i: c for i, c in world.expected.items() if i[0] != torn_session}
                    rest = [span for span in receiver.spans if span.trace_id != torn_session]
                    figures.add(others, rest)
                    mine = {i for i in world.expected if i[0] == torn_session}
                    figures.expected += len(mine)
                    got = {(s.trace_id, s.span_id) for s in receiver.spans} - others.keys()
                    figures.lost += len(mine - got)
                    figures.duplicated += len(got - mine)
                world.drop(home)
    figures.remark = "torn session: ids; others: bytes"
    return figures


def disk_full(world: World, chance: random.Random, short: bool) -> Figures:
    """A disk with so much room left and not a byte more, then room again."""
    figures = Figures(name="disk full")
    place = world.folder / "small-disk"
    place.mkdir()
    try:
        stepper = Stepper(
            *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
            f'mount -t tmpfs -o size=8m none "{place}" && exec "$@"',
            "sh",
        )
        stepper.order("settle", {})
        figures.remark = "a tmpfs, really full"
    except (AssertionError, OSError):
        stepper = world.stepper
        figures.remark = "no right to mount here: a limit on the size of files instead"
    rooms = list(range(0, 520_000, 9_000))
    rooms = sorted(chance.sample(rooms, 8)) if short else rooms
    try:
        for room in rooms:
            with Receiver() as receiver:
                if stepper is world.stepper:
                    home = world.new_home()
                    full = world.watch_once(home, receiver, file_limit=room // 2)
                    again = world.watch_once(home, receiver)
                    world.drop(home)
                else:
                    home = place / "home"
                    env = world.env(home, receiver.endpoint)
                    stepper.order("lay", env, source=str(world.template), leave=room)
                    full = stepper.order("watch_once", env)
                    hooked = stepper.order(
                        "hook", env, agent="claude-code", payload=base64.b64encode(b"{}").decode()
                    )
                    assert hooked.code == 0
                    stepper.order("make_room", env)
                    again = stepper.order("watch_once", env)
                assert full.code in (0, 1, 3), full
                assert again.code == 0, again
                # Where there is no room to note an answer, the same bytes go once more.
                figures.add(
                    world.expected,
                    receiver.spans,
                    faults=int(full.code != 0),
                    may_resend=True,
                )
    finally:
        if stepper is not world.stepper:
            stepper.close()
    return figures


# Root may write everywhere; without this right it is a user like others.
AS_A_USER = """
import ctypes, os, sys
for right in (1, 2, 3):
    ctypes.CDLL(None).prctl(24, right, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def read_only_home(world: World, chance: random.Random, short: bool) -> Figures:
    """Nothing in the home may be written, then it may again; before and after a first watcher."""
    del chance, short
    figures = Figures(name="read-only home")
    assert ctypes.sizeof(ctypes.c_int)
    stepper = Stepper(sys.executable, "-c", AS_A_USER)
    try:
        for began in (False, True):
            home = world.new_home()
            with Receiver() as receiver:
                env = world.env(home, receiver.endpoint)
                if began:
                    # A store with full outbox.
                    receiver.rule = lambda _: Answer(status=503)
                    assert stepper.order("watch_once", env).code == 1
                    receiver.rule = lambda _: Answer()
                modes = {path: path.stat().st_mode for path in [home, *home.rglob("*")]}
                for path, mode in modes.items():
                    path.chmod(mode & 0o555)
                hooked = stepper.order(
                    "hook", env, agent="claude-code", payload=base64.b64encode(b"{}").decode()
                )
                blocked = stepper.order("watch_once", env)
                for path, mode in modes.items():
                    path.chmod(mode)
                assert hooked.code == 0
                assert blocked.code == 3, blocked
                assert stepper.order("watch_once", env).code == 0
                figures.add(world.expected, receiver.spans)
            world.drop(home)
    finally:
        stepper.close()
    return figures


def clock_jumps(world: World, chance: random.Random, short: bool) -> Figures:
    """The clock is wrong by up to a year, another way at each start; each start is cut short."""
    figures = Figures(name="clock jumps back and forward")
    for _ in range(2 if short else 12):
        home = world.new_home()
        with Receiver() as receiver:
            for number in (40, 60, 100):
                shift = chance.choice((-1, 1)) * chance.uniform(1, 365 * 86_400)
                world.watch_once(home, receiver, clock_s=shift, die_at=number)
                figures.faults += 1
            arrives(world, home, receiver)
            figures.add(world.expected, receiver.spans, faults=0, may_resend=True)
        world.drop(home)
    return figures


def misbehaving_backend(world: World, chance: random.Random, short: bool) -> Figures:
    """Every kind of bad answer, for some requests or for all, and then a good backend."""
    figures = Figures(name="backend misbehaves")
    slow = {"OTEL_EXPORTER_OTLP_TIMEOUT": "300"}
    never = threading.Event()
    victim = chance.choice(sorted(world.expected))[1]

    def picky(request: ReceivedRequest) -> Answer:
        return Answer(rejected=int(victim in request.span_ids), error_message="no")

    def small(request: ReceivedRequest) -> Answer:
        return Answer(status=413 if len(request.spans) > 3 else 200)

    rules: dict[str, Callable[[ReceivedRequest], Answer]] = {
        **{
            str(status): lambda _, status=status: Answer(status=status)
            for status in (400, 401, 403, 404, 408, 422, 500, 502, 503, 504)
        },
        "429": lambda _: Answer(status=429, headers={"retry-after": "3600"}),
        "redirect": lambda _: Answer(status=307, headers={"location": "http://127.0.0.1:1/"}),
        "a web page": lambda _: Answer(body=b"<html>log in</html>"),
        "413": small,
        "partial success": picky,
        "hangs": lambda _: Answer(status=503, hold=never),
        "hangs up at once": lambda _: Answer(status=503, hang_up_after=0),
        "hangs up in its answer": lambda _: Answer(status=503, hang_up_after=20),
        "drips": lambda _: Answer(status=503, drip_s=0.05),
    }
    if short:
        always = {"413", "partial success", "hangs", "429"}
        others = chance.sample(sorted(rules.keys() - always), 4)
        rules = {name: rule for name, rule in rules.items() if name in always | {*others}}
    for name, rule in rules.items():
        home = world.new_home()
        with Receiver() as receiver:
            receiver.rule = rule
            # All others answer, if the machine is busy perhaps not so soon.
            given_up = slow if name in ("hangs", "drips") else {}
            env = world.env(home, receiver.endpoint, **given_up)
            began = time.monotonic()
            ended = world.stepper.order("watch_once", env, batch=7)
            took_s = time.monotonic() - began
            assert ended.code == (0 if name in ("413", "partial success") else 1), (name, ended)
            assert took_s < LIMIT_S
            receiver.rule = lambda _: Answer()
            if name == "a web page":
                # Success in the words of HTTP, so our receiver took it for one.
                receiver._accepted.clear()
            arrives(world, home, receiver)
            figures.add(world.expected, receiver.spans, may_resend=name == "partial success")
        world.drop(home)
    for endpoint in refusing_endpoints():
        home = world.new_home()
        with endpoint as url, Receiver() as receiver:
            assert world.stepper.order("watch_once", world.env(home, url, **slow)).code == 1
            arrives(world, home, receiver)
            figures.add(world.expected, receiver.spans)
        world.drop(home)
    figures.remark = f"{len(rules) + 3} kinds"
    return figures


def refusing_endpoints() -> Iterator[object]:
    @contextmanager
    def nobody() -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        yield f"http://127.0.0.1:{port}"

    @contextmanager
    def silent() -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"

    @contextmanager
    def untrusted() -> Iterator[str]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
        with Receiver(tls=context) as receiver:
            yield receiver.endpoint

    yield nobody()
    yield silent()
    yield untrusted()


class Gone:
    """A backend that is not there."""

    def send(self, spans: Sequence[OutboxSpan]) -> Receipt:
        del spans
        return Receipt(error="no connection")


def a_week(world: World, limit_bytes: int, hours: int) -> tuple[int, Figures]:
    """Let a turn end every hour while the backend is away; return how many were let go of."""
    figures = Figures(name="")
    home = world.new_home(filled=False)
    now = [time.time_ns()]
    dropped = 0
    with Receiver() as receiver:
        settings = read_settings(world.env(home, receiver.endpoint))
        watcher = Watcher(settings, clock=lambda: now[0])
        failures = 0
        for hour in range(hours):
            name = f"{hour:04d}-w-{home.name}"
            claude = Claude(home, world.folder, session=name, turn=f"turn-{name}")
            claude.simple_turn(began=hour * 3600)
            while watcher.step():
                pass
            watcher.step(settle_now=True)
            for _ in range(12):
                now[0] += 300 * 10**9
                report = deliver(
                    watcher.store, "otlp", Gone(), failures=failures, clock=lambda: now[0]
                )
                failures = report.failures
                dropped += watcher.store.bound_outbox("otlp", limit_bytes)
        expected = {(s.trace_id, s.span_id) for s in watcher.store.due("otlp", 10**20, 10**6)}
        everything = {
            (span.trace_id, span.span_id)
            for row in watcher.store.turns(limit=10**6)
            for span in watcher.store.spans(row.trace_id)
        }
        assert len(everything) == 2 * hours
        watcher.close()
        arrives(world, home, receiver)
        arrived = list(contents(receiver))
        figures.expected = len(everything) - 2 * dropped
        figures.lost = len(expected - set(arrived)) + abs(len(expected) - figures.expected)
        figures.duplicated = len(receiver.spans) - len(expected)
    world.drop(home)
    return dropped, figures


def backend_gone_for_a_week(world: World, chance: random.Random, short: bool) -> Figures:
    """Seven days of a fake clock, a turn every hour; and once with room for a part of them."""
    del chance
    hours = 24 if short else 168
    none, figures = a_week(world, 1 << 30, hours)
    assert none == 0
    dropped, bounded = a_week(world, 10_000, hours)
    assert dropped > 0
    figures.name = f"backend gone for {hours} hours"
    figures.faults = 2
    figures.expected += bounded.expected
    figures.lost += bounded.lost
    figures.duplicated += bounded.duplicated
    figures.remark = f"with an outbox of 10 kB the oldest {dropped} turns stay local, as stated"
    return figures


def two_watchers(world: World, chance: random.Random, short: bool) -> Figures:
    """A watcher that runs on, and two more with --once, all started at the same moment."""
    del chance
    figures = Figures(name="several watchers at once")
    for _ in range(1 if short else 8):
        home = world.new_home()
        with Receiver() as receiver:
            env = world.env(home, receiver.endpoint)
            once = [sys.executable, "-m", "tracebridge", "watch", "--once"]
            with running_watcher(env):
                others = [subprocess.Popen(once, env=env) for _ in range(2)]
                codes = [other.wait(LIMIT_S) for other in others]
            arrives(world, home, receiver)
            assert codes == [0, 0]
            figures.add(world.expected, receiver.spans, faults=3, may_resend=False)
        world.drop(home)
    return figures


def older_store(world: World, chance: random.Random, short: bool) -> Figures:
    """A store that the first version left with a full outbox and a turn under way."""
    del chance, short
    figures = Figures(name="store of an older version")
    home = world.new_home(filled=False)
    with closing(sqlite3.connect(home / FILE)) as database:
        database.executescript(OLD_STORE.read_text())
        waiting = {
            (trace, span): data
            for trace, span, data in database.execute("SELECT trace_id, span_id, data FROM outbox")
        }
    with Receiver() as receiver:
        arrives(world, home, receiver)
        arrived = {
            (span.trace_id, span.span_id): span.message.SerializeToString(deterministic=True)
            for span in receiver.spans
        }
        figures.faults = 1
        figures.expected = len(waiting)
        figures.lost = len(waiting.keys() - arrived.keys())
        figures.duplicated = len(receiver.spans) - len(waiting)
        figures.differing = sum(arrived.get(i) != data for i, data in waiting.items())
    world.drop(home)
    return figures


def damaged_store(world: World, chance: random.Random, short: bool) -> Figures:
    """Bytes of the store turn into others: set aside, what can be read saved, the rest told anew."""
    figures = Figures(name="store damaged")
    # Only sessions whose transcripts are there: what else has told of the others is gone.
    template = world.new_home()
    for file in Spool(template).read():
        content = file.content
        if isinstance(content, HookEvent):
            told = b"-session" in content.payload
        else:
            told = isinstance(content, GatewayCall) and content.call_id.startswith("call-")
        if not told:
            # Several calls may lie in one file.
            file.path.unlink(missing_ok=True)
    aside = differing = 0
    with Receiver() as receiver:
        expected = world.undisturbed(copy_of(world, template))
        receiver.rule = lambda _: Answer(status=503)
        assert world.watch_once(template, receiver).code == 1
    for _ in range(1 if short else 6):
        for damage in damages(chance):
            home = copy_of(world, template)
            damage(home / FILE)
            with Receiver() as receiver:
                ended = world.watch_once(home, receiver)
                assert ended.code == 0, (damage, ended.said)
                aside += len(list(home.glob("store.damaged-*.sqlite3")))
                one = Figures(name="")
                one.add(expected, receiver.spans, may_resend=True)
                figures.faults += 1
                figures.expected += one.expected
                figures.lost += one.lost
                figures.duplicated += one.duplicated
                differing += one.differing
            world.drop(home)
    world.drop(template)
    assert aside > 0
    figures.remark = f"ids; set aside {aside} times, {differing} spans told by the transcript alone"
    return figures


def copy_of(world: World, template: Path) -> Path:
    home = world.new_home(filled=False)
    shutil.copytree(template, home, dirs_exist_ok=True)
    return home


def damages(chance: random.Random) -> Iterator[Callable[[Path], None]]:
    def header(path: Path) -> None:
        path.write_bytes(chance.randbytes(4096) + path.read_bytes()[4096:])

    def pages(path: Path) -> None:
        data = bytearray(path.read_bytes())
        for _ in range(3):
            page = chance.randrange(1, len(data) // 4096)
            data[page * 4096 : (page + 1) * 4096] = chance.randbytes(4096)
        path.write_bytes(data)

    def sprinkled(path: Path) -> None:
        data = bytearray(path.read_bytes())
        for _ in range(200):
            data[chance.randrange(4096, len(data))] = chance.randrange(256)
        path.write_bytes(data)

    def cut(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: chance.randrange(4096, len(data))])

    def text(path: Path) -> None:
        path.write_bytes(b"no database at all\n" * 10 + path.read_bytes())

    return iter((header, pages, sprinkled, cut, text))


# Kills whoever asks for a socket, and everything that it starts.
WITHOUT_SOCKETS = """
import ctypes, os, struct, sys
numbers = {"x86_64": 41, "aarch64": 198}
def step(code, yes, no, value):
    return struct.pack("HBBI", code, yes, no, value)
program = step(0x20, 0, 0, 0) + step(0x15, 0, 1, numbers[os.uname().machine])
program += step(0x06, 0, 0, 0x80000000) + step(0x06, 0, 0, 0x7FFF0000)
held = ctypes.create_string_buffer(program)
filter = struct.pack("HxxxxxxP", 4, ctypes.addressof(held))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter, 0, 0):
    raise OSError(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"""


def hook_work(world: World, chance: random.Random, short: bool) -> Figures:
    """What the agent waits for is the same work whatever is broken, and none on the network.

    Counted, not timed: each file operation of the hook; and a kernel that kills whoever opens a
    socket finds nobody to kill.
    """
    del chance, short
    figures = Figures(name="hook while all else is broken")
    killer = [sys.executable, "-c", WITHOUT_SOCKETS, sys.executable]
    caught = subprocess.run([*killer, "-c", "import socket; socket.socket()"], check=False)
    assert caught.returncode == -signal.SIGSYS, "the kernel kills nobody"
    (event, *_) = hooks_of(world, "0-session")
    usual: list[str] = []
    for break_it in (nothing_broken, backend_refuses, backend_hangs, watcher_stands_still):
        home = world.new_home(filled=False)
        with break_it(world, home) as env:
            for command in (
                [*killer, "-I", "-S", f"{HOOKS}.py"],
                [*killer[:-1], "/bin/sh", f"{HOOKS}.sh"],
            ):
                done = subprocess.run(
                    [*command, "claude-code"],
                    input=event.payload,
                    env={**world.env(home), **env},
                    capture_output=True,
                    check=False,
                )
                silent = (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
                figures.lost += not silent
            done_steps = run_hook(world, home, event).steps
            usual = usual or done_steps
            figures.differing += done_steps != usual
        figures.faults += 1
        figures.expected += 3
        world.drop(home)
    figures.remark = f"events; {len(usual) // 2} file operations each, no socket"
    return figures


@contextmanager
def nothing_broken(world: World, home: Path) -> Iterator[dict[str, str]]:
    with Receiver() as receiver, running_watcher(world.env(home, receiver.endpoint)):
        wait_for_watcher(home)
        yield {}


@contextmanager
def backend_refuses(world: World, home: Path) -> Iterator[dict[str, str]]:
    """With an outbox that is full of what it does not take."""
    shutil.copytree(world.template, home, dirs_exist_ok=True)
    with Receiver() as receiver:
        receiver.rule = lambda _: Answer(status=503)
        assert world.watch_once(home, receiver).code == 1
        with running_watcher(world.env(home, receiver.endpoint)):
            wait_for_watcher(home)
            yield {}


def wait_for_watcher(home: Path) -> None:
    wait_until(lambda: is_watched(home) and (home / "spool" / "new").is_dir())


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.01)


def agent_meanwhile(world: World, chance: random.Random, short: bool) -> Figures:
    """The agent's own work while everything of ours is broken: same answer, same exit code."""
    del chance
    figures = Figures(name="agent at work meanwhile")
    rounds = 1 if short else 3
    for break_it in (home_is_a_file, home_cannot_be_written, watcher_stands_still, backend_hangs):
        for _ in range(rounds):
            home = world.new_home(filled=False)
            with break_it(world, home) as env:
                done = agent_run(world, home, **env)
            figures.faults += 1
            figures.expected += 1
            figures.lost += done.returncode != 0
            figures.differing += done.stdout != "Done: greet.py says hello to the world.\n"
    figures.remark = "turns: the agent's answer and exit code"
    return figures


@contextmanager
def home_is_a_file(world: World, home: Path) -> Iterator[dict[str, str]]:
    del world
    home.rmdir()
    home.write_text("")
    yield {}


@contextmanager
def home_cannot_be_written(world: World, home: Path) -> Iterator[dict[str, str]]:
    """Below a file there is no folder, not for root either."""
    del world
    (home / "file").write_text("")
    yield {"TRACEBRIDGE_HOME": str(home / "file" / "home")}


@contextmanager
def watcher_stands_still(world: World, home: Path) -> Iterator[dict[str, str]]:
    with running_watcher(world.env(home)) as watcher:
        wait_for_watcher(home)
        watcher.send_signal(signal.SIGSTOP)
        yield {}


@contextmanager
def backend_hangs(world: World, home: Path) -> Iterator[dict[str, str]]:
    with Receiver() as receiver:
        receiver.rule = lambda _: Answer(hold=threading.Event())
        with running_watcher(world.env(home, receiver.endpoint)):
            wait_for_watcher(home)
            yield {}


def calls_without_a_turn(world: World, chance: random.Random, short: bool) -> Figures:
    """A session that only the gateway knows, told by hooks later, the watcher killed between."""
    del chance, short
    figures = Figures(name="gateway before hooks, watcher killed between")
    home = world.new_home(filled=False)
    claude = Claude(home, world.folder, session="late-one", turn="late-turn")
    identity = CallIdentity(agent="claude-code", session_id="late-one", turn_key="late-turn")
    claude.spool.write_call(
        GatewayCall(
            call_id="c",
            gateway="tracebridge",
            method="POST",
            path="/v1/messages",
            start_ns=1_795_000_001 * 10**9,
            end_ns=1_795_000_002 * 10**9,
            identity=identity,
            response_id="msg_late",
        )
    )
    trace = trace_id("claude-code", "late-one", "late-turn")
    expected = {(trace, root_span_id(trace)): b"", (trace, span_id(trace, "llm", "msg_late")): b""}
    with Receiver() as receiver:
        world.watch_once(home, receiver, die_at=3)
        claude.hook(0, "UserPromptSubmit", prompt="hello")
        claude.prompt_line(0, "hello")
        world.watch_once(home, receiver, die_at=8)
        claude.answer_line(2, "msg_late", said("done"), began=1)
        claude.hook(3, "Stop", last_assistant_message="done", background_tasks=[])
        arrives(world, home, receiver)
        add_ids(figures, expected, receiver)
    world.drop(home)
    return figures


SCENARIOS: tuple[Scenario, ...] = (
    watcher_killed_at_every_step,
    watcher_killed_at_random,
    hook_killed_at_every_step,
    hooks_killed_at_random,
    gateway_killed,
    gateway_killed_in_mid_stream,
    power_cut,
    disk_full,
    read_only_home,
    clock_jumps,
    misbehaving_backend,
    backend_gone_for_a_week,
    two_watchers,
    older_store,
    damaged_store,
    calls_without_a_turn,
    agent_meanwhile,
    hook_work,
)
