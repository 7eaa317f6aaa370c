"""MLflow, by MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_ID and MLFLOW_TRACKING_TOKEN.

Seen with 3.17.2: it refuses with 422 what names no experiment, and a later copy of a span replaces
an earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracebridge.sinks import ReadySink, SinkSettingsError
from tracebridge.sinks._backend import Backend, Keys, base_url, basic, prepare_backend

_PASSWORD = "MLFLOW_TRACKING_PASSWORD"  # noqa: S105  # the name of a variable
_TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105  # the name of a variable


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    base = base_url(argument, env, ["MLFLOW_TRACKING_URI"], "http://localhost:5000")
    experiment = env.get("MLFLOW_EXPERIMENT_ID", "").strip() or "0"
    if not experiment.isdigit():
        raise SinkSettingsError(
            f"MLFLOW_EXPERIMENT_ID: {experiment[:40]!r} is no id; MLflow shows it in the "
            "experiment's address"
        )
    user = env.get("MLFLOW_TRACKING_USERNAME", "").strip()

    def headers(keys: Keys) -> dict[str, str]:
        found = {"x-mlflow-experiment-id": experiment}
        if _TOKEN in keys:
            found["authorization"] = f"Bearer {keys[_TOKEN]}"
        elif _PASSWORD in keys:
            found["authorization"] = basic(user, keys[_PASSWORD])
        return found

    wanted = _TOKEN if env.get(_TOKEN) else _PASSWORD
    return prepare_backend(
        name,
        env,
        Backend(
            url=f"{base}/v1/traces",
            # A server of one's own asks for none.
            keys=(wanted,) if user or env.get(wanted) else (),
            headers=headers,
        ),
    )
