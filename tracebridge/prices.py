"""What a call cost, by the list prices that come with `genai-prices`. Pure: it asks no network.

The same version gives the same price for ever, so the version stands on each priced span. What
the list does not know has no price; it is never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any

from tracebridge.model import Usage

# Where OpenTelemetry's name of a provider is not the price list's.
PROVIDERS = {"gcp.gen_ai": "google"}
LONGEST_MODEL_NAME = 200
MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of one call in US dollars; both cache parts are inside *prompt*."""

    prompt: float
    completion: float
    total: float
    cache_read: float | None
    cache_write: float | None


def cost_of(
    usage: Usage | None, model: str | None, provider: str | None, time_ns: int
) -> Cost | None:
    """Return what a call cost at the time of *time_ns*, None where the list does not know it."""
    if usage is None or not model or len(model) > LONGEST_MODEL_NAME:
        return None
    try:
        # Prices change by the day, not by the nanosecond.
        return _cost(usage, model, provider, time_ns // 86_400_000_000_000)
    except (ValueError, OverflowError, OSError):
        # More from the cache than there was, or a time beyond the calendar.
        return None


@cache
def price_list() -> str:
    """Return name and version of the list: what a cost must be read with."""
    import genai_prices  # noqa: PLC0415  # 150 ms, of which `status` and the like need none

    return f"genai-prices {genai_prices.__version__}"


@lru_cache(maxsize=10_000)
def _cost(usage: Usage, model: str, provider: str | None, day: int) -> Cost | None:
    import genai_prices  # noqa: PLC0415  # as above

    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    counted = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens or None,
        cache_write_tokens=usage.cache_write_tokens or None,
    )
    for provider_id, name in _readings(model, provider):
        try:
            price = genai_prices.calc_price(
                counted,
                name,
                provider_id=provider_id,
                genai_request_timestamp=datetime.fromtimestamp(day * 86_400, UTC),
            )
        except LookupError:
            continue
        return Cost(
            prompt=float(price.input_price),
            completion=float(price.output_price),
            total=float(price.total_price),
            cache_read=_part(price.model_price.cache_read_mtok, usage.cache_read_tokens, usage),
            cache_write=_part(price.model_price.cache_write_mtok, usage.cache_write_tokens, usage),
        )
    return None


def _readings(model: str, provider: str | None) -> Iterator[tuple[str | None, str]]:
    """Yield the ways to look a model up, the most exact first."""
    known = PROVIDERS.get(provider or "", provider)
    yield known, model
    # Gateways name the vendor in front: openai/gpt-5.5.
    vendor, slash, rest = model.partition("/")
    if slash:
        yield vendor, rest
    yield None, rest if slash else model


def _part(rate: Any, tokens: int | None, usage: Usage) -> float | None:
    from genai_prices.types import calc_unit_price  # noqa: PLC0415  # as above

    if rate is None or not tokens:
        return None
    part: Decimal = calc_unit_price(rate, tokens, usage.input_tokens or 0, MILLION)
    return float(part)
