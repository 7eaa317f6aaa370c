"""Much at once, the short version of `make load`: all of it arrives, in bounded memory."""

from __future__ import annotations

from load.run import agents_at_once, huge_transcript, many_spans


def test_many_agents_at_once(tmp_path):
    """Fifty sessions with real hook processes and one watcher: the spool is empty, all arrived."""
    load = agents_at_once(tmp_path, short=True)
    assert load.arrived == load.expected
    assert load.memory_mb < 400


def test_memory_does_not_grow_with_the_transcript(tmp_path):
    """Ten times as much to read takes hardly more memory."""
    small = huge_transcript(tmp_path / "small", megabytes=4)
    large = huge_transcript(tmp_path / "large", megabytes=40)
    assert (small.arrived, large.arrived) == (small.expected, large.expected)
    assert large.memory_mb < 1.5 * small.memory_mb


def test_memory_does_not_grow_with_the_spans(tmp_path):
    """Ten times as many spans in the outbox take hardly more memory."""
    few = many_spans(tmp_path / "few", spans=500)
    many = many_spans(tmp_path / "many", spans=5000)
    assert (few.arrived, many.arrived) == (few.expected, many.expected)
    assert many.memory_mb < 1.5 * few.memory_mb
