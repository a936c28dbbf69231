"""The calibration sequences, on which all methods of one seed agree."""

from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.data.mixture import Mixture
from disp_llm.data.randomness import random_stream
from disp_llm.data.windows import Windows
from disp_llm.models.windows import require_positions
from disp_llm.training.problem import PruningProblem


def calibration_windows(problem: PruningProblem) -> Windows:
    """The same windows for every method of one seed. Those that look at activations alone read the
    tokens, prompts too (`calibration_tokens`).

    Raises:
        InputError: a window is longer than the text or than the model can read.
    """
    count, length = problem.scores.calibration_sequences, problem.scores.calibration_length
    require_positions(problem.dense.model, length, "calibration_length")
    problem.corpus.require_length(length, "calibration_length")
    noise = random_stream("calibration", problem.seed)
    windows, _ = Mixture(problem.corpus).draw(count, length, noise)
    return windows


def calibration_tokens(problem: PruningProblem) -> Int[Tensor, "B T"]:
    """The tokens of the same windows, for what looks at activations alone.

    Raises:
        InputError: a window is longer than the text or than the model can read, or is shown with a
            picture.
    """
    windows = calibration_windows(problem)
    if windows.shown:
        raise InputError(
            "is not read by this method, which looks at the activations of text alone",
            field="processor_data",
            hint="use learned, fisher, taylor or another that follows the loss",
        )
    return windows.tokens
