"""SIGINT and SIGTERM: training ends after its step, with a checkpoint; anything else ends at once,
and what is half written is removed."""

import logging
import signal
from types import FrameType
from typing import Any

from disp_llm.runs.progress import ProgressCallback

logger = logging.getLogger(__name__)


_asked: list[int] = []
"""Signals that arrived outside of training."""


def end_tidily() -> None:
    """Lets SIGTERM end the process as Ctrl-C does, so that what is half written is removed."""
    _asked.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt


def has_been_asked_to_end() -> bool:
    """Returns whether a signal has arrived since, even if its exception was caught."""
    return bool(_asked)


class StopSignals:
    """Says, when training asks after a step, whether to stop.

    Collects signals from the first such question until another stage reports progress. At any other
    time there is no checkpoint to write, and a signal acts as it would without this class.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._previous: dict[int, Any] = {}
        self._stage = ""

    def __call__(self) -> bool:
        """Returns whether a signal has arrived; a second one interrupts at once."""
        if not self._previous:
            self._stage = ""
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._collect)
        return bool(self._received)

    def _collect(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received.append(number)
        logger.warning("stopping after this step; a checkpoint will be written")

    def watching(self, progress: ProgressCallback) -> ProgressCallback:
        """Returns the callback, wrapped to notice when training is over."""

        def watched(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
            progress(stage, done, total, figures)
            if self._previous:
                self._stage = self._stage or stage
                if stage != self._stage:
                    self.close()
                    if self._received:
                        raise KeyboardInterrupt

        return watched

    def close(self) -> None:
        """Restores both signals' earlier handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
