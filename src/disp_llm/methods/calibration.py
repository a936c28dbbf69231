"""The calibration sequences, on which all methods of one seed agree."""

from disp_llm.data.randomness import random_stream
from disp_llm.data.windows import Windows
from disp_llm.models.windows import require_positions
from disp_llm.training.problem import PruningProblem


def calibration_windows(problem: PruningProblem) -> Windows:
    """The same windows for every method of one seed; refuses what is longer than the text or than
    the model can read."""
    count, length = problem.scores.calibration_sequences, problem.scores.calibration_length
    require_positions(problem.dense.model, length, "calibration_length")
    problem.corpus.require_length(length, "calibration_length")
    return problem.corpus.draw(count, length, random_stream("calibration", problem.seed))
