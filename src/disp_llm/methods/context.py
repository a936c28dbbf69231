"""What a method may use beside its task: settings, the run folder, progress."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disp_llm.config import LearnConfig, ScoreConfig


@dataclass(frozen=True)
class Context:
    """Handed to every method."""

    scores: ScoreConfig
    learn: LearnConfig
    folder: Path
    """The run folder: scores and checkpoints are kept there, so that a stage is not done twice."""
    accelerator: Any
    on_sequence: Callable[[int, int], None]
    on_step: Callable[[dict], None]
