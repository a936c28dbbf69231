"""What a method may use beside its task: settings, the run folder, progress."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from disp_llm.config import LearnConfig, ScoreConfig
from disp_llm.learn import Task
from disp_llm.loop import generator_of
from disp_llm.mixture import Mixture
from disp_llm.models import require_positions


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


def calibration_windows(task: Task, config: ScoreConfig) -> Int[Tensor, "B T"]:
    """The same windows for every method of one seed.

    Raises:
        InputError: a window is longer than the text or than the model can read.
    """
    require_positions(task.model, config.calibration_length, "--calibration-length")
    task.corpus.require_length(config.calibration_length, "--calibration-length")
    windows, _ = Mixture(task.corpus).draw(
        config.calibration_sequences, config.calibration_length, generator_of(task.seed, 0)
    )
    return windows
