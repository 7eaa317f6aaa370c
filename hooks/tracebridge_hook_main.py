"""What `tracebridge_hook.py` does: stdin into one spool file, then a watcher if none lives.

Runs without site-packages, and each import counts, so it leans on the modules that a bare
interpreter has loaded anyway. What a spool file looks like is told in `tracebridge/spool.py`.
"""

import fcntl
import posix
import select
import sys
import time

PAYLOAD_LIMIT = 10 << 20
COUNT_LIMIT = 64 << 20
ENV_VALUE_LIMIT = 64 << 10
SECONDS_BETWEEN_STARTS = 10

DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW

ENV_NAMES = {
    b"AI_AGENT",
    b"CLAUDE_CODE_ENTRYPOINT",
    b"CLAUDE_PID",
    b"CLAUDE_PROJECT_DIR",
    b"RESPAN_CUSTOMER_ID",
    b"RESPAN_METADATA",
    b"RESPAN_PROJECT_ID",
    b"RESPAN_SPAN_NAME",
    b"RESPAN_WORKFLOW_NAME",
    b"TRACEBRIDGE_AGENT_PID",
    b"TRACEPARENT",
}
SECRET_WORDS = (b"KEY", b"TOKEN", b"SECRET", b"PASSWORD", b"HEADERS")

WATCHER_ENV_NAMES = (b"PATH", b"HOME", b"USER", b"LANG", b"TMPDIR", b"REQUESTS_CA_BUNDLE")
WATCHER_ENV_PREFIXES = (b"LC_", b"XDG_", b"TRACEBRIDGE_", b"RESPAN_", b"OTEL_", b"SSL_CERT_")


def run() -> None:
    try:
        handle_event()
    finally:
        # Nothing is buffered, so there is nothing to tidy up, and that would take a tenth of the
        # time. An exception ends here too, unheard.
        posix._exit(0)  # noqa: SLF001 -- public as os._exit, but os costs an import.


def handle_event() -> None:
    time_ns = time.time_ns()
    posix.umask(0o077)
    payload, payload_bytes = read_payload()
    home = home_directory()
    name = b"%020d-%d-0.event" % (time_ns, posix.getpid())
    head = [
        b"format=1",
        b"kind=hook",
        b"agent=" + argument(1),
        b"time_ns=%d" % time_ns,
        b"pid=%d" % posix.getpid(),
        b"payload_bytes=%d" % payload_bytes,
        *environment_fields(),
    ]
    try:
        write_event(home, name, [b"\0".join(head) + b"\0\0", *payload])
    except OSError:
        pass  # No room or no right to write. A watcher that drains the spool may mend it.
    if posix.environ.get(b"TRACEBRIDGE_NO_WATCH", b"0") in (b"", b"0"):
        start_watcher(home)


def argument(index: int) -> bytes:
    encoding = sys.getfilesystemencoding()
    return sys.argv[index].encode(encoding, "surrogateescape") if len(sys.argv) > index else b""


def read_payload() -> tuple[list[bytes], int]:
    """Return what the agent wrote, at most PAYLOAD_LIMIT bytes of it in pieces, and its size.

    An agent may leave stdin open for good, so no end of file is waited for.
    """
    pieces: list[bytes] = []
    size = 0
    give_up = time.monotonic() + 3
    try:
        patience = 1.0
        while size < COUNT_LIMIT and time.monotonic() < give_up:
            if not select.select([0], [], [], patience)[0]:
                break
            piece = posix.read(0, 1 << 16)
            if not piece:
                break
            if size < PAYLOAD_LIMIT:
                pieces.append(piece[: PAYLOAD_LIMIT - size])
            size += len(piece)
            # What does not end as JSON does is a part of it: a busy machine held the agent up.
            patience = 0.2 if piece.rstrip().endswith(b"}") else 1.0
    except OSError:
        pass  # No stdin. That the hook was called is still worth telling.
    return pieces, size


def home_directory() -> bytes:
    home = posix.environ.get(b"TRACEBRIDGE_HOME") or argument(2) or default_home()
    return home if home.startswith(b"/") else posix.getcwdb() + b"/" + home


def default_home() -> bytes:
    """Return what `platformdirs.user_state_path("tracebridge")` does."""
    state = posix.environ.get(b"XDG_STATE_HOME", b"")
    if not state.startswith(b"/"):
        user = posix.environ.get(b"HOME", b"")
        if not user.startswith(b"/"):
            import pwd  # noqa: PLC0415 -- hardly ever needed.

            user = pwd.getpwuid(posix.getuid()).pw_dir.encode("utf-8", "surrogateescape")
        below = b"Library/Application Support" if sys.platform == "darwin" else b".local/state"
        state = user.rstrip(b"/") + b"/" + below
    return state + b"/tracebridge"


def environment_fields() -> list[bytes]:
    """Return the allow-listed variables, and nothing else: a hook's environment holds API keys."""
    return [
        b"env.%b=%b" % (name, value[:ENV_VALUE_LIMIT])
        for name, value in posix.environ.items()
        if name in ENV_NAMES
        or (
            name.startswith(b"TRACEBRIDGE_")
            and not any(word in name.upper() for word in SECRET_WORDS)
        )
    ]


def write_event(home: bytes, name: bytes, parts: list[bytes]) -> None:
    try:
        tmp, new = open_spool(home)
    except FileNotFoundError:
        make_directories(home + b"/spool/tmp")
        make_directories(home + b"/spool/new")
        tmp, new = open_spool(home)
    file = posix.open(name, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, 0o600, dir_fd=tmp)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[posix.write(file, rest) :]
        # Some file systems tell that they are full no sooner than here.
        posix.close(file)
        posix.rename(name, name, src_dir_fd=tmp, dst_dir_fd=new)
    except OSError:
        posix.unlink(name, dir_fd=tmp)
        raise


def open_spool(home: bytes) -> tuple[int, int]:
    """Return descriptors of `tmp` and `new`.

    The home may be a link, what is in it may not: it could have been put there by somebody else to
    have events written to a place of his choice. For the same reason the spool must be ours; root
    may work in a user's home, as in a container.
    """
    spool = posix.open(home + b"/spool", DIRECTORY)
    facts = posix.fstat(spool)
    if facts.st_mode & 0o002 or (facts.st_uid != posix.geteuid() and posix.geteuid()):
        raise OSError
    return posix.open("tmp", DIRECTORY, dir_fd=spool), posix.open("new", DIRECTORY, dir_fd=spool)


def make_directories(path: bytes) -> None:
    end = path.find(b"/", 1)
    while end > 0:
        make_directory(path[:end])
        end = path.find(b"/", end + 1)
    make_directory(path)


def make_directory(path: bytes) -> None:
    try:
        posix.mkdir(path, 0o700)
    except OSError:
        pass  # It is there, or opening what should be in it will fail.


def start_watcher(home: bytes) -> None:
    """Start a watcher unless one lives: it holds a lock on `watch.lock` as long as it does.

    The lock belongs to the open file, not to the process, so it passes to the watcher with the
    descriptor and of many hooks at the same time exactly one starts one.
    """
    flags = posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW
    lock = posix.open(home + b"/watch.lock", flags, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: a watcher lives.
    state = posix.fstat(lock)
    # An empty file says that no hook has started a watcher yet; its time is that of its creation.
    if state.st_size and 0 <= time.time() - state.st_mtime < SECONDS_BETWEEN_STARTS:
        return
    posix.ftruncate(lock, 1)
    posix.utime(lock)
    if posix.fork() == 0:
        try:
            # A copy that survives exec, and no standard descriptor: those are replaced.
            become_watcher(home, fcntl.fcntl(lock, fcntl.F_DUPFD, 3))
        finally:
            posix._exit(1)  # noqa: SLF001 -- as above.


def is_same_folder(one: bytes, other: bytes) -> bool:
    try:
        return posix.stat(one)[1:3] == posix.stat(other)[1:3]
    except OSError:
        return False


def become_watcher(home: bytes, lock: int) -> None:
    # First of all let go of the agent's pipes: it waits until nobody holds them.
    # The copy is none of the three itself: dup2 onto itself would leave it to be closed at exec.
    null = fcntl.fcntl(posix.open("/dev/null", posix.O_RDWR), fcntl.F_DUPFD, 3)
    for descriptor in (0, 1, 2):
        posix.dup2(null, descriptor)
    posix.closerange(3, lock)
    posix.closerange(lock + 1, 1 << 16)
    posix.setsid()
    if posix.fork():
        return
    log_flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_NOFOLLOW
    log = posix.open(home + b"/watch.log", log_flags, 0o600)
    if posix.fstat(log).st_size > 1 << 20:
        posix.ftruncate(log, 0)
    posix.dup2(log, 2)
    posix.chdir("/")
    environment = {
        name: value
        for name, value in posix.environ.items()
        if name in WATCHER_ENV_NAMES
        or name.startswith(WATCHER_ENV_PREFIXES)
        or name.upper().endswith(b"_PROXY")
    }
    environment[b"TRACEBRIDGE_HOME"] = home
    command = [sys.executable, "-m", "tracebridge", "watch", "--lock-fd", str(lock)]
    if argument(2) and not is_same_folder(home, argument(2)):
        # The agent's environment chose it, and may have it from a project that has put a
        # config.toml there.
        command.append("--foreign-home")
    posix.execve(sys.executable, command, environment)
