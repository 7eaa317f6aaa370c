from __future__ import annotations

from backend_runs import turns

__all__ = ["turns"]
