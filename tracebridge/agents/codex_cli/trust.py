"""What approves hooks for Codex: a hash of each, which Codex itself is asked for.

It is asked about a copy in a folder that goes away again, since it looks at what lies in its home
and leaves files there. The hash does not depend on the place of the file; the key does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracebridge.agents._hooks import is_ours
from tracebridge.fields import dict_of, dicts_in, text_of, texts_in
from tracebridge.lines import parse_object

PROGRAM = "codex"
_ANSWER_S = 60.0


def hook_hashes(settings: Mapping[str, Any], path: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes of our hooks in *settings*, by the keys they have if these lie at *path*.

    Raise ValueError if Codex does not tell, or does not take the hooks.
    """
    program = shutil.which(PROGRAM, path=env.get("PATH"))
    if program is None:
        raise ValueError("codex is not on PATH, and only it can say what approves a hook")
    with tempfile.TemporaryDirectory(prefix="tracebridge-") as folder:
        home = Path(folder).resolve() / ".codex"
        home.mkdir()
        copy = home / "hooks.json"
        copy.write_text(json.dumps(settings))
        found = known_hooks(program, home, env)
    hooks = [hook for each in found for hook in dicts_in(each.get("hooks")) if is_ours(hook)]
    if not hooks:
        warnings = [warning for each in found for warning in texts_in(each.get("warnings"))]
        said = " ".join(warnings).replace(str(copy), str(path)) or "it finds none of ours"
        raise ValueError(f"Codex does not take the hooks: {said}")
    place = os.path.abspath(path)  # noqa: PTH100  # resolve() would follow a link of the user's
    return {
        key.replace(str(copy), place): trusted
        for hook in hooks
        if (key := text_of(hook, "key")) is not None
        and (trusted := text_of(hook, "currentHash")) is not None
    }


def known_hooks(program: str, home: Path, env: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what Codex says of hooks, with its warnings, if *home* is its home."""
    requests: list[dict[str, Any]] = [
        {
            "id": 1,
            "method": "initialize",
            "params": {"clientInfo": {"name": "tracebridge", "version": "1"}},
        },
        {"method": "initialized"},
        {"id": 2, "method": "hooks/list", "params": {"cwds": [str(home.parent)]}},
    ]
    process = subprocess.Popen(
        [program, "app-server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**env, "CODEX_HOME": str(home), "HOME": str(home.parent)},
        cwd=home.parent,
    )
    # It answers as long as its input is open: closing it too soon would lose the answer.
    watch = threading.Timer(_ANSWER_S, process.kill)
    watch.start()
    try:
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise ValueError("codex app-server cannot be spoken to")
        stdin.write(b"".join(json.dumps(request).encode() + b"\n" for request in requests))
        stdin.flush()
        for line in stdout:
            answer = parse_object(line)
            if isinstance(answer, dict) and answer.get("id") == 2:
                return dicts_in(dict_of(answer.get("result")).get("data"))
    except OSError as error:
        raise ValueError(f"codex app-server: {error.strerror}") from error
    finally:
        watch.cancel()
        process.kill()
        process.communicate()
    raise ValueError("codex app-server does not tell what approves a hook; use /hooks in codex")
