"""Being told of changes: watchdog, as it is, in folders where much happens."""

from __future__ import annotations

import logging
import threading

import pytest
from watchdog.events import FileSystemEvent, FileSystemEventHandler

from tracebridge.file_events import observing


class Handler(FileSystemEventHandler):
    def __init__(self) -> None:
        self.seen = threading.Event()

    def on_any_event(self, event: FileSystemEvent) -> None:
        del event
        self.seen.set()


@pytest.fixture
def busy_folder(tmp_path):
    """Return a folder in which a thread writes without a pause."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            (tmp_path / "file").write_bytes(b"")

    thread = threading.Thread(target=write)
    thread.start()
    yield tmp_path
    stop.set()
    thread.join()


def test_an_observer_stops_in_silence_while_files_change(busy_folder, caplog):
    """Watchdog calls an event that comes while it stops an error."""
    for _ in range(50):
        handler = Handler()
        with observing() as observer:
            observer.schedule(handler, str(busy_folder))
            assert handler.seen.wait(60)
    assert caplog.messages == []


def test_other_messages_of_watchdog_are_heard(tmp_path, caplog):
    """Silence ends with the observer."""
    with observing() as observer:
        observer.schedule(Handler(), str(tmp_path))
        logging.getLogger("watchdog.observers.inotify").warning("while it observes")
    logging.getLogger("watchdog.observers.inotify").warning("afterwards")
    assert caplog.messages == ["while it observes", "afterwards"]
