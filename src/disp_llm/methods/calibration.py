"""The calibration sequences, on which all methods of one seed agree."""

from disp_llm.data.randomness import random_stream
from disp_llm.data.tokens import Corpus
from disp_llm.data.windows import Windows
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import require_positions
from disp_llm.training.problem import PruningProblem


def calibration_windows(problem: PruningProblem) -> Windows:
    """The same windows for every method of one seed."""
    count, length = problem.scores.calibration_sequences, problem.scores.calibration_length
    return windows_of(problem.corpus, problem.dense, count, length, problem.seed)


def windows_of(
    corpus: Corpus, target: PrunableModel, count: int, length: int, seed: int
) -> Windows:
    """Windows of a text, as many and as long as the settings of a calibration say; refuses what is
    longer than the text or than the model can read."""
    require_positions(target.model, length, "calibration_length")
    corpus.require_length(length, "calibration_length")
    return corpus.draw(count, length, random_stream("calibration", seed))
