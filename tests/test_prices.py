"""What calls cost: by list prices, cache apart, and never guessed."""

from __future__ import annotations

import subprocess
import sys
import time

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from test_spans import everything, spans_by_name

from tracebridge import semconv
from tracebridge.model import Usage
from tracebridge.prices import cost_of, price_list

NOW_NS = time.time_ns()
# Dollars per million tokens of claude-haiku-4-5, as its vendor lists them.
INPUT, OUTPUT, READ, WRITE = 1.0, 5.0, 0.1, 1.25


def test_cache_reads_and_writes_have_prices_of_their_own():
    """Input tokens include both, and none of them is paid twice."""
    usage = Usage(
        input_tokens=1000, output_tokens=200, cache_read_tokens=700, cache_write_tokens=100
    )
    cost = cost_of(usage, "claude-haiku-4-5", "anthropic", NOW_NS)
    assert cost.prompt == pytest.approx((200 * INPUT + 700 * READ + 100 * WRITE) / 1e6)
    assert cost.completion == pytest.approx(200 * OUTPUT / 1e6)
    assert cost.total == pytest.approx(cost.prompt + cost.completion)
    assert cost.cache_read == pytest.approx(700 * READ / 1e6)
    assert cost.cache_write == pytest.approx(100 * WRITE / 1e6)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-haiku-4-5"),
        ("anthropic", "claude-haiku-4-5-20251001"),
        ("anthropic", "anthropic/claude-haiku-4-5"),
        ("openai", "anthropic/claude-haiku-4-5"),
        ("my-own-gateway", "claude-haiku-4-5"),
        (None, "anthropic/claude-haiku-4-5"),
        (None, "claude-haiku-4-5"),
    ],
)
def test_a_model_is_found_by_any_of_its_names(provider, model):
    """With a vendor in front, as gateways have it, or a date behind."""
    cost = cost_of(Usage(input_tokens=1_000_000, output_tokens=0), model, provider, NOW_NS)
    assert cost.total == pytest.approx(INPUT)


def test_gemini_by_its_name_in_opentelemetry():
    """The price list calls that provider otherwise."""
    usage = Usage(input_tokens=100_000, output_tokens=0)
    assert cost_of(usage, "gemini-2.5-pro", "gcp.gen_ai", NOW_NS).total == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("usage", "model", "provider"),
    [
        (None, "claude-haiku-4-5", "anthropic"),
        (Usage(input_tokens=5, output_tokens=5), None, "anthropic"),
        (Usage(input_tokens=5, output_tokens=5), "", None),
        (Usage(input_tokens=5, output_tokens=5), "claude-next-99", "anthropic"),
        (Usage(input_tokens=5, output_tokens=5), "my-model", "my-gateway"),
        (Usage(input_tokens=5, output_tokens=5), "x" * 100_000, None),
        (Usage(input_tokens=5), "claude-haiku-4-5", "anthropic"),
        (Usage(output_tokens=5), "claude-haiku-4-5", "anthropic"),
        (Usage(input_tokens=5, output_tokens=5, cache_read_tokens=9), "claude-haiku-4-5", None),
        (Usage(input_tokens=-5, output_tokens=5), "claude-haiku-4-5", "anthropic"),
    ],
)
def test_what_is_not_known_has_no_price(usage, model, provider):
    """A model that no list has, a count that was not told, counts that cannot be."""
    assert cost_of(usage, model, provider, NOW_NS) is None


numbers = st.none() | st.integers(-(2**70), 2**70)


@given(
    st.tuples(numbers, numbers, numbers, numbers),
    st.text(),
    st.none() | st.text(),
    st.integers(-(2**80), 2**80),
)
def test_no_numbers_and_names_raise(counts, model, provider, time_ns):
    """Whatever a transcript says of tokens, models and times."""
    names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    usage = Usage(**dict(zip(names, counts, strict=True)))
    for name in (model, "claude-haiku-4-5"):
        cost_of(usage, name, provider, time_ns)


def test_cost_stands_on_calls_and_its_sum_beside_them():
    """With the price list that it was read from; the turn's sum has a name of its own."""
    sightings = [see for see in everything() if getattr(see.part, "response_id", None) != "msg"]
    (call,) = [see for see in everything() if getattr(see.part, "response_id", None) == "msg"]
    priced = replace(call, part=replace(call.part, model="claude-haiku-4-5", provider="anthropic"))
    spans = spans_by_name([*sightings, priced])
    chat = spans["chat claude-haiku-4-5"].attributes
    expected = (5 * INPUT + 90 * READ + 5 * WRITE + 7 * OUTPUT) / 1e6
    assert chat[semconv.OI_COST_TOTAL] == pytest.approx(expected)
    assert chat[semconv.LLM_PRICE_LIST] == f"genai-prices {genai_prices.__version__}"
    root = next(span for span in spans.values() if span.parent_span_id is None).attributes
    assert root[semconv.TURN_COST] == pytest.approx(expected)
    assert semconv.TURN_UNPRICED_CALLS not in root
    for span in spans.values():
        if span.attributes[semconv.SPAN_TYPE] != "llm":
            assert not any(name.startswith("llm.cost") for name in span.attributes)
    unknown = spans_by_name(everything())
    chat = unknown["chat m"].attributes
    assert semconv.OI_COST_TOTAL not in chat
    root = next(span for span in unknown.values() if span.parent_span_id is None).attributes
    assert semconv.TURN_COST not in root
    assert root[semconv.TURN_UNPRICED_CALLS] == 1


def test_prices_ask_no_network():
    """The list comes with the package; its updater is never started."""
    script = (
        "import socket, threading\n"
        "def refuse(*_): raise SystemExit('it asked the network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from tracebridge.model import Usage\n"
        "from tracebridge.prices import cost_of\n"
        "assert cost_of(Usage(input_tokens=1, output_tokens=1), 'claude-haiku-4-5', None, 10**18)\n"
        "assert threading.active_count() == 1\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert price_list().startswith("genai-prices ")
