"""What the sinks of known backends send: to which address, with which headers, in which words.

Whether a backend then shows it as it should is for tests/backends, where it can be run.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tracebridge import ids, semconv
from tracebridge.encode import encode_span
from tracebridge.model import Span, SpanKind, Status
from tracebridge.settings import read_settings
from tracebridge.sinks import (
    OutboxSpan,
    SinkSettingsError,
    configured_sinks,
    lasting_sinks,
    prepare,
)
from tracebridge.testing.receiver import Answer, Receiver

# Sink, its settings but the address (in braces), and what must arrive: path and headers.
BACKENDS = {
    "phoenix": (
        {"PHOENIX_COLLECTOR_ENDPOINT": "{}", "PHOENIX_API_KEY": "k,=", "PHOENIX_PROJECT_NAME": "p"},
        "/v1/traces",
        {"authorization": "Bearer k,=", "x-project-name": "p"},
    ),
    "mlflow": (
        {
            "MLFLOW_TRACKING_URI": "{}/",
            "MLFLOW_EXPERIMENT_ID": "7",
            "MLFLOW_TRACKING_USERNAME": "me",
            "MLFLOW_TRACKING_PASSWORD": "k",
        },
        "/v1/traces",
        {"x-mlflow-experiment-id": "7", "authorization": "Basic bWU6aw=="},
    ),
    "langfuse": (
        {"LANGFUSE_HOST": "{}", "LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk"},
        "/api/public/otel/v1/traces",
        {"authorization": "Basic cGs6c2s=", "x-langfuse-ingestion-version": "4"},
    ),
    "langsmith": (
        {"LANGSMITH_ENDPOINT": "{}", "LANGSMITH_API_KEY": "k", "LANGSMITH_PROJECT": "my project"},
        "/otel/v1/traces",
        {"x-api-key": "k", "langsmith-project": "my project"},
    ),
    "datadog": (
        {"TRACEBRIDGE_SINKS": "datadog:{}", "DD_API_KEY": "k"},
        "/v1/traces",
        {"dd-api-key": "k", "dd-otlp-source": "llmobs"},
    ),
    "honeycomb": (
        {"HONEYCOMB_API_ENDPOINT": "{}", "HONEYCOMB_API_KEY": "k", "HONEYCOMB_DATASET": "d"},
        "/v1/traces",
        {"x-honeycomb-team": "k", "x-honeycomb-dataset": "d"},
    ),
    "grafana": (
        {
            "GRAFANA_CLOUD_OTLP_ENDPOINT": "{}/otlp",
            "GRAFANA_CLOUD_INSTANCE_ID": "1",
            "GRAFANA_CLOUD_API_KEY": "k",
        },
        "/otlp/v1/traces",
        {"authorization": "Basic MTpr"},
    ),
    "respan": (
        {"RESPAN_BASE_URL": "{}/api", "RESPAN_API_KEY": "k"},
        "/api/v2/traces",
        {"authorization": "Bearer k"},
    ),
    "collector": (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{}", "OTEL_EXPORTER_OTLP_HEADERS": "x-team=blue"},
        "/v1/traces",
        {"x-team": "blue"},
    ),
}


def chat(**more):
    trace = ids.trace_id("claude-code", "session", "turn")
    attributes = {
        semconv.SPAN_TYPE: "llm",
        semconv.INPUT_TOKENS: 1200,
        semconv.OUTPUT_TOKENS: 300,
        semconv.CACHE_READ_TOKENS: 1000,
        semconv.CACHE_WRITE_TOKENS: 50,
        semconv.REASONING_TOKENS: 20,
        semconv.OI_TOTAL_TOKENS: 1500,
        semconv.PROVIDER: "anthropic",
        semconv.REQUEST_STREAM: True,
        semconv.TIME_TO_FIRST_CHUNK: 0.5,
        semconv.HTTP_STATUS_CODE: 200,
        semconv.FINISH_REASONS: ("end_turn",),
        semconv.OI_OUTPUT: "done",
        semconv.SESSION_ID: "session",
        semconv.USER_ID: "acme",
        semconv.RESPAN_CUSTOMER: "acme" * 100,
        semconv.METADATA_PREFIX + "team": "blue",
        **more,
    }
    span = Span(
        trace_id=trace,
        span_id=ids.span_id(trace, "llm", "1"),
        parent_span_id=ids.root_span_id(trace),
        name="chat m",
        kind=SpanKind.CLIENT,
        start_ns=1_700_000_000_000_000_000,
        end_ns=1_700_000_001_000_000_000,
        status=Status.ERROR if semconv.ERROR_TYPE in more else Status.UNSET,
        status_message="too many" if semconv.ERROR_TYPE in more else "",
        attributes=attributes,
    )
    return OutboxSpan(
        span_id=span.span_id,
        trace_id=trace,
        resource=(("service.name", "a"),),
        data=encode_span(span),
    )


def sent_to(kind, spans, **env):
    """Return the request that the sink makes, and the spans in it as attributes by name."""
    settings, _, _ = BACKENDS[kind]
    with Receiver() as receiver:
        env = {
            "TRACEBRIDGE_SINKS": kind,
            **{name: value.format(receiver.endpoint) for name, value in settings.items()},
            **env,
        }
        (ready,) = configured_sinks(env)
        sink = ready.open()
        receipt = sink.send(spans)
        assert (receipt.error, len(receipt.acknowledged)) == (None, len(spans))
        sink.close()
        (request,) = receiver.requests
        return ready, request, [span.attributes for span in receiver.spans]


@pytest.mark.parametrize("kind", BACKENDS)
def test_each_backend_gets_its_path_and_headers(kind):
    """Of what was set for another, nothing; and `status` shows where, without the key."""
    _, path, headers = BACKENDS[kind]
    more = {} if kind == "collector" else {"OTEL_EXPORTER_OTLP_HEADERS": "x-other=secret"}
    ready, request, (attributes,) = sent_to(kind, [chat()], **more)
    assert request.path == path
    assert {name: request.headers[name] for name in headers} == headers
    assert "x-other" not in request.headers
    assert ready.target.endswith(path)
    # Whatever words are added, ours stay.
    assert attributes[semconv.INPUT_TOKENS] == 1200
    assert attributes[semconv.FINISH_REASONS] == ["end_turn"]


@pytest.mark.parametrize(
    "kind", [k for k, (env, _, _) in BACKENDS.items() if any("KEY" in name for name in env)]
)
def test_a_missing_key_is_named(kind):
    """With the forms in which it may be given."""
    settings, _, _ = BACKENDS[kind]
    if kind == "phoenix":
        # One's own Phoenix asks for no key.
        assert prepare(kind, {}).target == "http://localhost:6006/v1/traces"
        return
    env = {n: v.format("http://a") for n, v in settings.items() if "KEY" not in n}
    env.pop("TRACEBRIDGE_SINKS", None)
    with pytest.raises(SinkSettingsError, match=r"_KEY.*ENV:NAME, FILE:path or CMD:command"):
        prepare(kind, env)


def test_a_key_may_be_named_instead_of_given(tmp_path):
    """By a variable, a file of one's own, or a command, looked up when it is used."""
    file = tmp_path / "key"
    file.write_text("from-file\n")
    file.chmod(0o600)
    for value, key in (
        ("ENV:MY_KEY", "from-variable"),
        (f"FILE:{file}", "from-file"),
        ("CMD:printf from-command", "from-command"),
    ):
        env = {"MY_KEY": "from-variable", "HONEYCOMB_API_KEY": value}
        _, request, _ = sent_to("honeycomb", [chat()], **env)
        assert request.headers["x-honeycomb-team"] == key


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("FILE:/nowhere/key", "FILE:/nowhere/key: No such file"),
        ("FILE:{readable}", "chmod 600"),
        ("FILE:{empty}", "no key in it"),
        ("CMD:false", "exit code 1"),
        ("CMD:no-such-program-here", "exit code 127"),
        ("CMD:", "given by reference"),
        ("CMD:printf 'a\\tb'", "not a key of one line"),
    ],
)
def test_a_key_that_cannot_be_had_holds_the_spans_back(tmp_path, value, complaint):
    """They wait in the outbox; the error names the variable, and no part of the key."""
    for name, mode in (("readable", 0o644), ("empty", 0o600)):
        (tmp_path / name).write_text("s3cret" if name == "readable" else "\n")
        (tmp_path / name).chmod(mode)
    value = value.format(readable=tmp_path / "readable", empty=tmp_path / "empty")
    sink = prepare("honeycomb", {"HONEYCOMB_API_KEY": value}).open()
    receipt = sink.send([chat()])
    assert receipt.acknowledged == ()
    assert receipt.retry_after_s
    assert "HONEYCOMB_API_KEY" in receipt.error
    assert complaint in receipt.error
    assert "s3cret" not in receipt.error
    sink.close()


def test_a_key_that_expired_is_looked_up_again(tmp_path):
    """After a failure, so that a new one needs no restart."""
    file = tmp_path / "key"
    file.write_text("old")
    file.chmod(0o600)
    with Receiver() as receiver:
        env = {"HONEYCOMB_API_KEY": f"FILE:{file}", "HONEYCOMB_API_ENDPOINT": receiver.endpoint}
        sink = prepare("honeycomb", env).open()
        receiver.answer_next(Answer(status=401))
        assert sink.send([chat()]).error
        file.write_text("new")
        assert sink.send([chat()]).error is None
        sink.close()
        assert [r.headers["x-honeycomb-team"] for r in receiver.requests] == ["old", "new"]


@pytest.mark.parametrize(
    ("kind", "env", "complaint"),
    [
        ("grafana", {"GRAFANA_CLOUD_API_KEY": "k"}, "GRAFANA_CLOUD_OTLP_ENDPOINT"),
        ("mlflow", {"MLFLOW_EXPERIMENT_ID": "mine"}, "MLFLOW_EXPERIMENT_ID"),
        ("datadog", {"DD_API_KEY": "k", "DD_SITE": "https://x"}, "DD_SITE"),
        ("phoenix", {"PHOENIX_COLLECTOR_ENDPOINT": "localhost"}, "PHOENIX_COLLECTOR_ENDPOINT"),
        ("langsmith", {"LANGSMITH_API_KEY": "a\nb"}, "LANGSMITH_API_KEY"),
        ("langsmith", {"LANGSMITH_API_KEY": "ENV:NOT_SET"}, "NOT_SET"),
    ],
)
def test_a_setting_that_cannot_be_is_named(kind, env, complaint):
    """Before anything is sent."""
    with pytest.raises(SinkSettingsError, match=complaint):
        prepare(kind, env)


def test_langfuse_gets_usage_that_does_not_overlap():
    """Fresh, read and written input beside each other add up to ours, as do both kinds of output."""
    _, _, (attributes,) = sent_to("langfuse", [chat()])
    usage = json.loads(attributes["langfuse.observation.usage_details"])
    assert usage == {
        "input": 150,
        "cache_read_input_tokens": 1000,
        "cache_creation_input_tokens": 50,
        "output": 280,
        "output_reasoning_tokens": 20,
    }
    first = json.loads(attributes["langfuse.observation.completion_start_time"])
    assert first == "2023-11-14T22:13:20.500000+00:00"
    assert attributes["langfuse.trace.metadata.team"] == "blue"


def test_langsmith_gets_kind_thread_and_metadata():
    _, _, (attributes,) = sent_to("langsmith", [chat()])
    assert attributes["langsmith.span.kind"] == "llm"
    assert attributes["langsmith.metadata.session_id"] == "session"
    assert attributes["langsmith.metadata.team"] == "blue"
    _, _, (attributes,) = sent_to("langsmith", [chat(**{semconv.SPAN_TYPE: "edit"})])
    assert attributes["langsmith.span.kind"] == "chain"


def test_respan_gets_its_columns():
    """Usage with cache and reasoning, first token, kind, input and output; limits are kept."""
    _, _, (attributes,) = sent_to("respan", [chat(**{semconv.ERROR_TYPE: "429"})])
    assert attributes["gen_ai.usage.prompt_tokens"] == 1200
    assert attributes["gen_ai.usage.completion_tokens"] == 300
    assert attributes["gen_ai.usage.cache_read_input_tokens"] == 1000
    assert attributes["gen_ai.usage.cache_creation_input_tokens"] == 50
    assert attributes["llm.usage.reasoning_tokens"] == 20
    assert attributes["llm.usage.total_tokens"] == 1500
    assert attributes["llm.openai.chat_completions.streaming_time_to_first_token"] == 0.5
    assert attributes["llm.is_streaming"] is True
    assert attributes["status_code"] == 200
    assert attributes["error.message"] == "too many"
    assert attributes["gen_ai.completion.0.content"] == "done"
    assert attributes["traceloop.span.kind"] == "task"
    assert len(attributes[semconv.RESPAN_CUSTOMER]) == 254


def test_what_respans_gateway_logged_is_not_counted_twice():
    """The span points at the row that has usage and cost, and carries neither."""
    _, _, (attributes,) = sent_to("respan", [chat(**{semconv.RESPAN_GATEWAY_LOG_ID: "row"})])
    assert attributes[semconv.RESPAN_GATEWAY_LOG_ID] == "row"
    counted = [name for name in attributes if "token" in name and "first" not in name]
    assert counted == []
    assert "gen_ai.completion.0.content" not in attributes


@pytest.mark.parametrize("kind", ["langfuse", "langsmith", "respan"])
def test_words_are_the_same_bytes_each_time(kind):
    """A re-send is byte-identical; a damaged span is set aside, not a crash."""
    _, first, _ = sent_to(kind, [chat()])
    _, second, _ = sent_to(kind, [chat()])
    assert first.body == second.body
    damaged = replace(chat(), data=b"\x0a\xff")
    from tracebridge.sinks._backend import translated

    assert translated(damaged.data, lambda span: span.attributes) == damaged.data
    assert SpanMessage.FromString(translated(chat().data, lambda span: span.attributes)) == (
        SpanMessage.FromString(chat().data)
    )


def test_several_backends_at_once_each_get_all(tmp_path):
    """Three sinks, one of them down: the others have every span."""
    with Receiver() as one, Receiver() as other:
        env = {
            "TRACEBRIDGE_SINKS": f"phoenix, respan, json_file:{tmp_path / 'spans.jsonl'}",
            "PHOENIX_COLLECTOR_ENDPOINT": one.endpoint,
            "RESPAN_BASE_URL": other.endpoint,
            "RESPAN_API_KEY": "k",
        }
        other.answer_next(Answer(status=503))
        receipts = []
        for ready in configured_sinks(env):
            sink = ready.open()
            receipts.append(sink.send([chat()]))
            sink.close()
        assert [len(receipt.acknowledged) for receipt in receipts] == [1, 0, 1]
        assert "authorization" not in one.requests[0].headers


def test_basic_is_base64():
    from tracebridge.sinks._backend import basic

    assert base64.b64decode(basic("a", "b").removeprefix("Basic ")) == b"a:b"


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_project_cannot_lead_traces_away_by_a_backends_own_variables(kind, tmp_path):
    """Nor have a command of its own run as if it gave the key: the user's file names the sink."""
    (tmp_path / "config.toml").write_text(f'sinks = "{kind}"\n')
    settings, _, _ = BACKENDS[kind]
    hostile = {
        name: f"CMD:touch {tmp_path}/ran" if "KEY" in name else value.format("http://evil.example")
        for name, value in settings.items()
    }
    hostile |= {"DD_SITE": "evil.example", "TRACEBRIDGE_HOME": str(tmp_path)}
    sinks, _ = lasting_sinks(read_settings(hostile, file_first=True).env)
    assert [sink.name for sink in sinks] == [kind]
    for ready in sinks:
        assert "evil" not in ready.target
        if "KEY" in str(settings):
            sink = ready.open()
            sink.send([chat()])
            sink.close()
    assert not (tmp_path / "ran").exists()
