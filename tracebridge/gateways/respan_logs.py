"""Respan's list of request logs, read on from where the last look ended: rows in, calls out.

Format facts (`POST /api/request-logs/list/`, as of September 2026):
- Page, size, order and time window stand in the query, filters by field in the body.
- A window reaches back a week at most. A row appears some time after its call has ended, so each
  look begins some minutes before the end of the last one, and what was seen then is left out.
- Rows are a summary unless `include_fields` names what is wanted; texts are not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import orjson
import requests
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from tracebridge.agents import Cursor
from tracebridge.fields import dicts_in, moment_of, text_of
from tracebridge.gateways._respan_rows import SECOND_NS, call_of_row, is_call
from tracebridge.model import GatewayCall
from tracebridge.sinks._deadline import DeadlineAdapter, deadline

GATEWAY = "respan"
LOG_ID_HEADER = "x-respan-log-id"
DEFAULT_BASE_URL = "https://api.respan.ai/api"
# How late a row may appear.
OVERLAP_NS = 600 * SECOND_NS
# What the first look takes in, and the most that any may.
FIRST_NS = 3600 * SECOND_NS
MOST_NS = 7 * 86_400 * SECOND_NS
PAGE_SIZE = 200
# Of one look; the next one goes on where it ended.
MOST_PAGES = 50
PAGE_BYTES = 32 * 1024 * 1024
_TIMEOUT_S = (10, 60)
# However slowly it comes.
_PAGE_S = 120.0
_FIELDS = (
    "unique_id,timestamp,start_time,latency,time_to_first_token,model,provider_id,log_type,"
    "stream,status,status_code,error_message,failed,prompt_tokens,completion_tokens,"
    "prompt_cache_hit_tokens,prompt_cache_creation_tokens,reasoning_tokens,usage,"
    "customer_identifier,session_identifier,thread_identifier,trace_unique_id,"
    "span_parent_id"
)


class RespanLogsError(Exception):
    """The logs cannot be read now; the text says why and what to do."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        # When to come again, where Respan says so.
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class LogReading:
    calls: tuple[GatewayCall, ...]
    cursor: Cursor


class RespanLogs:
    """Read the request logs of one account; with *customer*, only those made in that name."""

    def __init__(self, base_url: str, key: str, customer: str | None = None) -> None:
        base = base_url.rstrip("/")
        self._url = f"{base if base.endswith('/api') else f'{base}/api'}/request-logs/list/"
        self._customer = customer
        self._key = key

    def read(self, cursor: Cursor, now_ns: int) -> LogReading:
        """Return the calls that appeared since *cursor*. Raise RespanLogsError.

        To read on from the same cursor gives the same calls again, under the same ids.
        """
        seen = {str(log_id): int(time_ns) for log_id, time_ns in cursor.memory.items()}
        begun_ns = now_ns - FIRST_NS if not cursor.offset else cursor.offset - OVERLAP_NS
        begun_ns = max(begun_ns, now_ns - MOST_NS)
        calls: list[GatewayCall] = []
        until_ns = now_ns
        for page in range(1, MOST_PAGES + 1):
            rows, is_last = self._page(page, begun_ns, now_ns)
            for row in rows:
                log_id = text_of(row, "unique_id")
                if log_id is None or log_id in seen or not self._is_wanted(row):
                    continue
                seen[log_id] = moment_of(row.get("timestamp")) or now_ns
                if is_call(row):
                    calls.append(_call(row, log_id, now_ns))
            if is_last:
                break
        else:
            # Too much for one look: the latest of what was read is where the next one begins.
            until_ns = max([begun_ns + OVERLAP_NS, *seen.values()])
        kept = {i: time_ns for i, time_ns in seen.items() if time_ns >= until_ns - OVERLAP_NS}
        return LogReading(tuple(calls), Cursor(offset=until_ns, memory=kept))

    def _is_wanted(self, row: Mapping[str, Any]) -> bool:
        # Asked of the server too; others' calls must not come in if it does not heed that.
        return self._customer is None or row.get("customer_identifier") == self._customer

    def _page(self, page: int, begun_ns: int, until_ns: int) -> tuple[list[dict[str, Any]], bool]:
        query = {
            "page": page,
            "page_size": PAGE_SIZE,
            # The oldest first: what appears meanwhile does not push rows from page to page.
            "sort_by": "id",
            "start_time": _stamp(begun_ns),
            "end_time": _stamp(until_ns),
            "all_envs": "true",
            "fetch_filters": "false",
            "include_fields": _FIELDS,
        }
        filters = {}
        if self._customer is not None:
            filters["customer_identifier"] = {"operator": "", "value": [self._customer]}
        document = self._post(f"{self._url}?{urlencode(query)}", {"filters": filters})
        rows = dicts_in(document.get("results"))
        return rows, not document.get("next") or not rows

    def _post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            with requests.Session() as session, deadline(_PAGE_S):
                session.mount("http://", DeadlineAdapter())
                session.mount("https://", DeadlineAdapter())
                with session.post(
                    url,
                    data=orjson.dumps(body),
                    headers={
                        "authorization": f"Bearer {self._key}",
                        "content-type": "application/json",
                        # Nobody keeps a connection open for as long as we pause.
                        "connection": "close",
                    },
                    # One of its own keeps requests from putting that of ~/.netrc over our header.
                    auth=lambda request: request,
                    timeout=_TIMEOUT_S,
                    # The key is for that host alone.
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    data = response.raw.read(PAGE_BYTES + 1, decode_content=True)
                    status = response.status_code
                    retry_after = response.headers.get("retry-after", "")
        except (RequestException, HTTPError, OSError) as error:
            raise RespanLogsError(f"{self._url}: {type(error).__name__}") from error
        if status != 200:
            seconds = (
                float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
            )
            remedy = "; check the key in respan_logs" if status in {401, 403} else ""
            raise RespanLogsError(f"{self._url}: status {status}{remedy}", seconds)
        try:
            document = orjson.loads(data) if len(data) <= PAGE_BYTES else None
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict) or not isinstance(document.get("results"), list):
            raise RespanLogsError(
                f"{self._url}: the answer is no list of logs; check RESPAN_BASE_URL"
            )
        return document


def _call(row: dict[str, Any], log_id: str, now_ns: int) -> GatewayCall:
    call = call_of_row(row, call_id=f"{GATEWAY}:{log_id}", gateway=GATEWAY, arrived_ns=now_ns)
    # By this the sink of that name knows that the call is counted there already.
    return replace(call, response_headers={LOG_ID_HEADER: log_id})


def _stamp(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // SECOND_NS, UTC)
    return moment.isoformat().replace("+00:00", "Z")
