"""An agent for machines without one: it makes real requests and runs the real hooks.

`python -m tracebridge.testing.stand_in_agent --settings JSON -p PROMPT` does one turn the way
Claude Code 2.1.329 does it without a transcript: the same hook payloads, headers and retries, and
tools that really run. For the demo; what is true of Claude Code is proved with Claude Code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MODEL = "claude-scripted-1"
ATTEMPTS = 5


class StandInAgent:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._hooks = settings["hooks"]
        self._env = {**os.environ, **settings["env"], "CLAUDE_PID": str(os.getpid())}
        self._session_id = str(uuid.uuid4())
        self._prompt_id = str(uuid.uuid4())

    def turn(self, prompt: str) -> None:
        self._hook("SessionStart", {"source": "startup"})
        self._hook("UserPromptSubmit", {"prompt": prompt})
        answer = self._converse(prompt, {})
        self._hook("Stop", {"last_assistant_message": answer, "background_tasks": []})
        self._hook("SessionEnd", {"reason": "other"})
        print(answer)  # noqa: T201  # what an agent does

    def _converse(self, prompt: str, who: Mapping[str, str]) -> str:
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        while True:
            message = self._ask(messages, who)
            messages.append({"role": "assistant", "content": message["content"]})
            uses = [block for block in message["content"] if block["type"] == "tool_use"]
            if not uses:
                return "".join(block.get("text", "") for block in message["content"])
            messages.append({"role": "user", "content": [self._use(block, who) for block in uses]})

    def _ask(self, messages: list[dict[str, Any]], who: Mapping[str, str]) -> dict[str, Any]:
        headers = {
            "content-type": "application/json",
            "anthropic-version": "2023-06-01",
            "x-api-key": self._env.get("ANTHROPIC_API_KEY", ""),
            "X-Claude-Code-Session-Id": self._session_id,
            "x-claude-code-prompt-id": self._prompt_id,
            "x-claude-code-request-class": "subagent" if who else "main",
        }
        if who:
            headers["x-claude-code-agent-id"] = who["agent_id"]
        body = {
            "model": MODEL,
            "max_tokens": 1000,
            "messages": messages,
            "tools": [{"name": "Bash"}],
            "stream": True,
        }
        url = self._env["ANTHROPIC_BASE_URL"] + "/v1/messages?beta=true"
        for attempt in range(ATTEMPTS):
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
            try:
                with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                    return _message(response)
            except urllib.error.HTTPError as error:
                error.read()
                time.sleep(0.1 * 2**attempt)
        raise SystemExit(f"the model did not answer in {ATTEMPTS} attempts")

    def _use(self, block: Mapping[str, Any], who: Mapping[str, str]) -> dict[str, Any]:
        tool = {
            "tool_name": block["name"],
            "tool_input": block["input"],
            "tool_use_id": block["id"],
            **who,
        }
        self._hook("PreToolUse", tool)
        began = time.monotonic()
        try:
            response, text = self._run_tool(block["name"], block["input"])
        except (OSError, subprocess.CalledProcessError) as error:
            text = f"Exit code {getattr(error, 'returncode', 1)}"
            self._hook("PostToolUseFailure", {**tool, "error": text, **_took(began)})
            return _result(block["id"], text, failed=True)
        self._hook("PostToolUse", {**tool, "tool_response": response, **_took(began)})
        return _result(block["id"], text, failed=False)

    def _run_tool(self, name: str, given: Mapping[str, Any]) -> tuple[Any, str]:
        if name == "Bash":
            done = subprocess.run(
                ["/bin/sh", "-c", given["command"]], capture_output=True, text=True, check=True
            )
            return {"stdout": done.stdout, "stderr": done.stderr}, done.stdout
        if name == "Agent":
            return self._run_subagent(given)
        path = Path(given["file_path"])
        if name == "Write":
            path.write_text(given["content"])
            return {"type": "create", "filePath": str(path), "structuredPatch": []}, "written"
        if name == "Edit":
            path.write_text(path.read_text().replace(given["old_string"], given["new_string"]))
            return {"filePath": str(path)}, "edited"
        return {"type": "text", "file": {"filePath": str(path)}}, path.read_text()

    def _run_subagent(self, given: Mapping[str, Any]) -> tuple[Any, str]:
        who = {"agent_id": uuid.uuid4().hex[:17], "agent_type": given["subagent_type"]}
        self._hook("SubagentStart", who)
        answer = self._converse(given["prompt"], who)
        self._hook("SubagentStop", {**who, "last_assistant_message": answer})
        return {"agentId": who["agent_id"], "status": "completed"}, answer

    def _hook(self, event: str, fields: Mapping[str, Any]) -> None:
        payload = {
            "session_id": self._session_id,
            "transcript_path": str(Path.home() / "no-transcript.jsonl"),
            "cwd": str(Path.cwd()),
            "prompt_id": self._prompt_id,
            "hook_event_name": event,
            **fields,
        }
        if event in {"SessionStart", "SessionEnd"}:
            del payload["prompt_id"]
        for group in self._hooks.get(event, []):
            for hook in group["hooks"]:
                subprocess.run(
                    ["/bin/sh", "-c", hook["command"]],
                    input=json.dumps(payload).encode(),
                    env=self._env,
                    check=True,
                )


def _message(response: Any) -> dict[str, Any]:
    """Return the message that an event stream tells."""
    blocks: dict[int, dict[str, Any]] = {}
    inputs: dict[int, str] = {}
    for event in _events(response):
        index = event.get("index", -1)
        if event["type"] == "content_block_start":
            blocks[index] = event["content_block"]
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            if delta["type"] == "input_json_delta":
                inputs[index] = inputs.get(index, "") + delta["partial_json"]
            elif delta["type"] in {"text_delta", "thinking_delta"}:
                name = delta["type"].removesuffix("_delta")
                blocks[index][name] = blocks[index].get(name, "") + delta[name]
    for index, text in inputs.items():
        blocks[index]["input"] = json.loads(text or "{}")
    return {"content": [blocks[index] for index in sorted(blocks)]}


def _events(response: Any) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data:"):
            yield json.loads(line[5:])


def _result(tool_id: str, text: str, *, failed: bool) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": tool_id, "content": text, "is_error": failed}


def _took(began: float) -> dict[str, Any]:
    return {"duration_ms": round((time.monotonic() - began) * 1000)}


def main(arguments: list[str]) -> None:
    settings = json.loads(arguments[arguments.index("--settings") + 1])
    StandInAgent(settings).turn(arguments[arguments.index("-p") + 1])


if __name__ == "__main__":
    main(sys.argv[1:])
