"""How a long task says how far it is."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

ProgressCallback = Callable[[str, int, int, dict[str, Any]], None]
"""Called as work goes on with (stage, done, total, figures)."""

downloads: ContextVar[ProgressCallback | None] = ContextVar("downloads", default=None)
"""What a command has its downloads told, wherever a model is loaded."""

Ticks = Callable[[int, int], None]
"""Called with (done, total) as one stage goes on."""


def counting(progress: ProgressCallback, stage: str) -> Ticks:
    """What reports the progress of one stage."""
    return lambda done, total: progress(stage, done, total, {})


def silent(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
    """Progress that nobody sees."""


def unwatched(done: int, total: int) -> None:
    """A stage that nobody sees."""
