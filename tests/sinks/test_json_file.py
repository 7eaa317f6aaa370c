from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tracebridge.sinks import prepare
from tracebridge.testing.receiver import parse_spans


@pytest.fixture
def open_sink():
    def open_sink(path):
        return prepare("json_file", {}, argument=str(path)).open()

    return open_sink


def read(path):
    lines = path.read_bytes().splitlines()
    return [span.span_id for line in lines for span in parse_spans(line, is_json=True)]


def test_each_batch_is_one_line_for_nobody_else_to_read(make_spans, open_sink, tmp_path):
    """The folder is made, the file is 0600, and every line is a whole document."""
    path = tmp_path / "new" / "spans.jsonl"
    spans = make_spans(3)
    sink = open_sink(path)
    assert len(sink.send(spans[:2]).acknowledged) == 2
    assert len(sink.send(spans[2:]).acknowledged) == 1
    assert read(path) == [span.span_id for span in spans]
    assert len(path.read_bytes().splitlines()) == 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_was_cut_does_not_spoil_the_next(make_spans, open_sink, tmp_path):
    """After a crash in mid-line, what follows starts on a line of its own."""
    path = tmp_path / "spans.jsonl"
    path.write_bytes(b'{"resourceSpans": [')
    (span,) = make_spans(1)
    open_sink(path).send([span])
    torn, whole = path.read_bytes().splitlines()
    assert torn == b'{"resourceSpans": ['
    assert parse_spans(whole, is_json=True)[0].span_id == span.span_id


def test_a_full_disk_is_a_failure(make_spans, open_sink):
    """Nothing is acknowledged, and the file is named."""
    receipt = open_sink("/dev/full").send(make_spans(1))
    assert receipt.acknowledged == ()
    assert "/dev/full" in receipt.error


def test_a_path_that_cannot_be_written_is_a_failure(make_spans, open_sink, tmp_path):
    """A folder in place of the file, or a file in place of a folder."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "spans.jsonl"):
        receipt = open_sink(path).send(make_spans(1))
        assert receipt.acknowledged == ()
        assert str(path) in receipt.error


def test_a_damaged_span_does_not_block_the_rest(make_spans, open_sink, tmp_path):
    spans = make_spans(3)
    spans[1] = replace(spans[1], data=b"\x0a\xff")
    receipt = open_sink(tmp_path / "spans.jsonl").send(spans)
    assert list(receipt.refused) == [spans[1].span_id]
    assert len(receipt.acknowledged) == 2


def test_spans_are_grouped_by_resource(make_spans, open_sink, tmp_path):
    """Spans of two services stand in one document, each under its own."""
    path = tmp_path / "spans.jsonl"
    first, second = make_spans(2)
    open_sink(path).send([first, replace(second, resource=(("service.name", "codex-cli"),))])
    document = json.loads(path.read_text())
    assert [len(each["scopeSpans"][0]["spans"]) for each in document["resourceSpans"]] == [1, 1]
