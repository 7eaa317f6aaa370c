from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tracebridge.sinks import SinkSettingsError, configured_sinks, kinds, prepare
from tracebridge.sinks._otlp_settings import WireProtocol, read_otlp_settings
from tracebridge.testing.receiver import Answer, Receiver

RESPAN_REPLY = b'{"partialSuccess":{"rejectedSpans":0,"errorMessage":""}}'


def settings(**env):
    return read_otlp_settings({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in env.items()})


@pytest.mark.parametrize(
    ("env", "endpoint"),
    [
        ({}, "http://localhost:4318/v1/traces"),
        ({"ENDPOINT": "http://a:1"}, "http://a:1/v1/traces"),
        ({"ENDPOINT": "http://a:1/"}, "http://a:1/v1/traces"),
        ({"ENDPOINT": "https://a/otlp/"}, "https://a/otlp/v1/traces"),
        ({"ENDPOINT": "https://a/otlp?x=1"}, "https://a/otlp/v1/traces?x=1"),
        ({"TRACES_ENDPOINT": "http://a:1"}, "http://a:1"),
        ({"TRACES_ENDPOINT": "http://a:1/x", "ENDPOINT": "http://b"}, "http://a:1/x"),
        ({"TRACES_ENDPOINT": " ", "ENDPOINT": "http://b"}, "http://b/v1/traces"),
        ({"ENDPOINT": "http://[::1]:4318"}, "http://[::1]:4318/v1/traces"),
        ({"ENDPOINT": "https://api.respan.ai"}, "https://api.respan.ai/api/v2/traces"),
        ({"ENDPOINT": "https://api.respan.ai/api/"}, "https://api.respan.ai/api/v2/traces"),
        (
            {"TRACES_ENDPOINT": "https://api.respan.ai/api/v2/traces"},
            "https://api.respan.ai/api/v2/traces",
        ),
        ({"ENDPOINT": "https://notrespan.ai"}, "https://notrespan.ai/v1/traces"),
    ],
)
def test_the_endpoint_follows_the_specification_and_respans_rule(env, endpoint):
    """The general endpoint gets a path, that of the signal is taken as it is."""
    assert settings(**env).endpoint == endpoint


def test_user_and_password_become_a_header():
    """They leave the URL, which is shown in messages, and do not replace a header that is set."""
    found = settings(ENDPOINT="https://me:p%40ss@a:1/x")
    assert found.endpoint == "https://a:1/x/v1/traces"
    assert found.headers == {"authorization": "Basic bWU6cEBzcw=="}
    assert "bWU6" not in repr(found)
    with_header = settings(ENDPOINT="https://me:p@a", HEADERS="Authorization=Bearer k")
    assert with_header.headers == {"authorization": "Bearer k"}


def test_headers_of_the_signal_replace_the_general_ones():
    """They are split at commas, percent-decoded, and lower-case in their names."""
    assert settings(HEADERS="A=1, b = x%2Cy%3D ,c=d==,").headers == {
        "a": "1",
        "b": "x,y=",
        "c": "d==",
    }
    assert settings(HEADERS="a=1", TRACES_HEADERS="b=2").headers == {"b": "2"}


def test_timeouts_are_milliseconds():
    """As the specification says."""
    assert settings().timeout_s == 10
    assert settings(TIMEOUT="2500").timeout_s == 2.5
    assert settings(TIMEOUT="2500", TRACES_TIMEOUT="100").timeout_s == 0.1


@pytest.mark.parametrize(
    ("env", "gzipped"),
    [
        ({"ENDPOINT": "http://127.0.0.1:4318"}, False),
        ({"ENDPOINT": "http://localhost:4318"}, False),
        ({"ENDPOINT": "http://[::1]:4318"}, False),
        ({"ENDPOINT": "http://127.0.0.1.example.org"}, True),
        ({"ENDPOINT": "https://example.org"}, True),
        ({"ENDPOINT": "https://example.org", "COMPRESSION": "none"}, False),
        ({"ENDPOINT": "http://localhost", "TRACES_COMPRESSION": "gzip"}, True),
        ({"ENDPOINT": "https://api.respan.ai", "COMPRESSION": "gzip"}, False),
    ],
)
def test_only_what_crosses_a_network_is_gzipped_by_default(env, gzipped):
    """And nothing ever for Respan, which does not decompress."""
    assert settings(**env).gzip is gzipped


def test_the_protocol_is_one_of_three():
    assert settings().protocol is WireProtocol.HTTP_PROTOBUF
    assert settings(PROTOCOL="http/json").protocol is WireProtocol.HTTP_JSON
    assert settings(PROTOCOL="grpc", ENDPOINT="collector:4317").endpoint == "collector:4317"
    assert settings(PROTOCOL="grpc").endpoint == "http://localhost:4317"


@pytest.mark.parametrize(
    "env",
    [
        {"ENDPOINT": "localhost:4318"},
        {"ENDPOINT": "ftp://a"},
        {"ENDPOINT": "http://"},
        {"ENDPOINT": "http://a:hunter2"},
        {"ENDPOINT": "http://me:hunter2@a:99999"},
        {"TRACES_ENDPOINT": "http://[::1"},
        {"ENDPOINT": "http://a b"},
        {"HEADERS": "hunter2"},
        {"HEADERS": "a b=hunter2"},
        {"TRACES_HEADERS": "a=hunter2%0D%0Ax:y"},
        {"HEADERS": "a=hunter2é"},
        {"TIMEOUT": "10s"},
        {"TIMEOUT": "0"},
        {"TIMEOUT": "-1"},
        {"TIMEOUT": "9" * 5000},
        {"PROTOCOL": "http"},
        {"TRACES_COMPRESSION": "zstd"},
        {"INSECURE": "maybe"},
        {"CERTIFICATE": "/nowhere/ca.pem"},
        {"CLIENT_KEY": "/dev/null"},
    ],
)
def test_a_bad_value_names_its_variable_and_keeps_secrets(env):
    """The message says which variable it is, and repeats no part that may be a password."""
    (name,) = env
    with pytest.raises(SinkSettingsError, match=f"OTEL_EXPORTER_OTLP_{name}") as caught:
        settings(**env)
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value)) < 300


# The first draw of a text builds a table of Unicode, which may take a second.
@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["ENDPOINT", "HEADERS", "TIMEOUT", "COMPRESSION", "TRACES_ENDPOINT"]),
        st.text() | st.text("http:/[]@.%=,?#0a").map("http://{}".format),
    )
)
def test_no_value_does_worse_than_a_settings_error(env):
    """Garbage is told apart from settings, in whatever variable."""
    try:
        assert settings(**env).endpoint.startswith("http")
    except SinkSettingsError as error:
        assert "OTEL_EXPORTER_OTLP" in str(error)  # noqa: PT017


def names(**env):
    return [(sink.name, sink.target) for sink in configured_sinks(env)]


def test_nothing_is_sent_unless_asked_for():
    """No endpoint and no sink named: no sink, even with a gateway's key in the environment."""
    assert names() == []
    assert names(RESPAN_API_KEY="k", OTEL_EXPORTER_OTLP_HEADERS="a=b") == []


def test_the_standard_endpoint_is_enough():
    """Its sink keeps its name whatever the protocol, so the outbox survives a change of it."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1"}
    assert names(**env) == [("otlp", "http://localhost:1/v1/traces")]
    assert names(**env, OTEL_EXPORTER_OTLP_PROTOCOL="grpc") == [("otlp", "http://localhost:1")]
    traces = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:1/x"}
    assert names(**traces) == [("otlp", "http://localhost:1/x")]


def test_sinks_are_named_with_what_they_need():
    """Several at once, each with a name that is stable and holds no secret."""
    listed = "memory, otlp_http:http://u:p@a:1/b?key=k,json_file:/tmp/x:y.jsonl,memory"
    assert names(TRACEBRIDGE_SINKS=listed) == [
        ("memory", "this process's memory"),
        ("otlp_http:http://a:1/b", "http://a:1/b/v1/traces"),
        ("json_file:/tmp/x:y.jsonl", "/tmp/x:y.jsonl"),
    ]


@pytest.mark.parametrize(
    ("listed", "remedy"),
    [
        ("tempo", "choose from collector, .*json_file, .*memory, .*otlp"),
        ("_batch", "choose from"),
        ("../memory", "choose from"),
        ("json_file", "absolute path"),
        ("json_file:x.jsonl", "absolute path"),
        ("respan", "set it to a key"),
        ("otlp_http:localhost:4318", "write it like"),
    ],
)
def test_a_sink_that_cannot_be_has_a_remedy(listed, remedy):
    with pytest.raises(SinkSettingsError, match=remedy):
        names(TRACEBRIDGE_SINKS=listed)


def test_every_module_is_a_sink():
    """Each meets its protocol and says where it sends; adding one is adding a file."""
    assert {"json_file", "memory", "otlp", "otlp_grpc", "otlp_http", "respan"} < {*kinds()}
    names = ("RESPAN_API_KEY", "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "LANGSMITH_API_KEY")
    names += ("DD_API_KEY", "HONEYCOMB_API_KEY", "GRAFANA_CLOUD_INSTANCE_ID")
    env = dict.fromkeys((*names, "GRAFANA_CLOUD_API_KEY"), "k")
    env["GRAFANA_CLOUD_OTLP_ENDPOINT"] = "https://otlp-gateway-prod-eu-west-0.grafana.net/otlp"
    for kind in kinds():
        argument = "/tmp/spans.jsonl" if kind == "json_file" else ""
        ready = prepare(kind, env, argument=argument)
        sink = ready.open()
        assert ready.name == kind
        assert ready.target
        assert sink.send([]).error is None
        sink.close()


def test_respan_gets_its_path_its_key_and_no_gzip(make_spans):
    """And none of the headers that were meant for another backend."""
    with Receiver() as receiver:
        env = {
            "TRACEBRIDGE_SINKS": "respan",
            "RESPAN_API_KEY": "key%20=,1",
            "RESPAN_BASE_URL": f"{receiver.endpoint}/api/",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-other=secret",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        (ready,) = configured_sinks(env)
        receiver.answer_next(Answer(body=RESPAN_REPLY))
        sink = ready.open()
        assert len(sink.send(make_spans(3)).acknowledged) == 3
        sink.close()
        (request,) = receiver.requests
    assert ready.target == f"{receiver.endpoint}/api/v2/traces"
    assert request.path == "/api/v2/traces"
    assert request.headers["authorization"] == "Bearer key%20=,1"
    assert "x-other" not in request.headers
    assert "content-encoding" not in request.headers


def test_a_respan_endpoint_takes_the_key_from_its_own_variable():
    """Where no authorization header is set, RESPAN_API_KEY serves."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://api.respan.ai/api", "RESPAN_API_KEY": "k"}
    assert read_otlp_settings(env).headers == {"authorization": "Bearer k"}
    env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "https://example.org"
    assert read_otlp_settings(env).headers == {}
