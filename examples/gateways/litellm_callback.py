"""LiteLLM tells tracebridge of each call: one line of JSON, without prompts and answers.

Lay this file beside LiteLLM's config.yaml, and let that say:

    litellm_settings:
      callbacks: ["litellm_callback.recorder"]
"""

import json
import os
from pathlib import Path

from litellm.integrations.custom_logger import CustomLogger

KEPT = (
    "id litellm_call_id call_type stream status startTime endTime completionStartTime model"
    " model_group custom_llm_provider prompt_tokens completion_tokens end_user user_agent"
).split()
KEPT_OF_ERROR = ("error_code", "error_class", "error_provider_request_id")
KEPT_OF_METADATA = ("requester_custom_headers", "usage_object", "user_api_key_alias")
# Of the headers those by which an agent says who it is; keys are among the others.
KEPT_HEADERS = (
    "x-claude-code-",
    "x-codex-",
    "x-session-id",
    "x-parent-session-id",
    "x-tracebridge-",
)


class Recorder(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        write(kwargs.get("standard_logging_object") or {})

    async def async_log_failure_event(self, kwargs, response_obj, start_time, end_time):
        write(kwargs.get("standard_logging_object") or {})


def write(told):
    known = told.get("metadata") or {}
    metadata = {name: known.get(name) for name in KEPT_OF_METADATA}
    headers = metadata["requester_custom_headers"] or {}
    metadata["requester_custom_headers"] = {
        name: value for name, value in headers.items() if name.lower().startswith(KEPT_HEADERS)
    }
    error = told.get("error_information") or {}
    answered = (told.get("hidden_params") or {}).get("additional_headers") or {}
    record = {name: told.get(name) for name in KEPT} | {
        "metadata": metadata,
        "error_information": {name: error.get(name) for name in KEPT_OF_ERROR},
        "hidden_params": {
            "additional_headers": {n: v for n, v in answered.items() if n.endswith("request-id")}
        },
    }
    folder = Path(os.environ["TRACEBRIDGE_RECORDS"])
    # One write of a whole line: several workers may do so at once.
    with (folder / "litellm.jsonl").open("ab", buffering=0) as file:
        file.write(json.dumps(record, default=str).encode() + b"\n")


recorder = Recorder()
