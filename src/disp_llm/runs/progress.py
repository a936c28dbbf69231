"""How a long task says how far it is."""

from collections.abc import Callable
from typing import Any

ProgressCallback = Callable[[str, int, int, dict[str, Any]], None]
"""Called as work goes on with (stage, done, total, figures)."""


def silent(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
    """Progress that nobody sees."""
