"""How a long task reports its progress."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

ProgressCallback = Callable[[str, int, int, dict[str, Any]], None]
"""Called as work goes on with (stage, done, total, figures)."""

downloads: ContextVar[ProgressCallback | None] = ContextVar("downloads", default=None)
"""Callback for downloads, set by a command and used wherever a model is loaded."""

Ticks = Callable[[int, int], None]
"""Called with (done, total) as one stage goes on."""


def counting(progress: ProgressCallback, stage: str) -> Ticks:
    """Returns the callback of one stage."""
    return lambda done, total: progress(stage, done, total, {})


def silent(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
    """Reports progress to nobody."""


def unwatched(done: int, total: int) -> None:
    """Reports a stage to nobody."""
