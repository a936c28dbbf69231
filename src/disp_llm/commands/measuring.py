"""What every model of one task is measured on: a text, a suite, a sample of its words."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig
from disp_llm.data.tokens import Stream, Texts, opening
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.evaluation.sample import continued
from disp_llm.exporter.facts import FACTS, read_facts
from disp_llm.masks.prunable import PrunableModel
from disp_llm.runs.job import Job
from disp_llm.runs.progress import ProgressCallback, counting
from disp_llm.runs.results import OriginalResult, from_json
from disp_llm.runs.scores import Perplexity, Scores
from disp_llm.training.losses import Teacher

if TYPE_CHECKING:
    from disp_llm.evaluation.suites import Scoreboard

logger = logging.getLogger(__name__)

PROMPT_TOKENS, SAMPLE_TOKENS = 32, 48
"""Tokens of the prompt, and of the text that shows what a model writes after it."""


def scoreboard_of(suite: str, dense: Scores | None) -> "Scoreboard | None":
    """The suite that a task measures its models on, its texts read; None where it names none.

    Args:
        dense: what an earlier attempt at the task has measured of the original.

    Raises:
        InputError: the original was measured on other texts.
    """
    if not suite:
        return None
    from disp_llm.config.texts import load_suite
    from disp_llm.evaluation.suites import Scoreboard

    board = Scoreboard.of(load_suite(suite))
    if dense is not None:
        read = {name: text.sha256 for name, text in board.texts.items()}
        if read != {name: text.text_sha256 for name, text in dense.texts.items()}:
            raise InputError(
                "its texts are not those that the original was measured on",
                field="suite",
                hint="make them what they were, or start anew in another `output_dir`",
            )
    return board


@dataclass(frozen=True)
class Measuring:
    """One evaluation text, and how it is read."""

    stream: Stream
    config: PerplexityConfig
    tokenizer: Any
    progress: ProgressCallback
    board: "Scoreboard | None" = None
    """The suite that models are measured on besides, if any."""

    @classmethod
    def of(cls, job: Job, texts: Texts, tokenizer: Any, board: "Scoreboard | None") -> "Measuring":
        """What a job measures its models on."""
        return cls(texts.evaluation, job.config.evaluation, tokenizer, job.progress, board)

    def scores(
        self, target: PrunableModel, name: str, dense: Scores | None = None
    ) -> Scores | None:
        """Scores on the suite, against those of the original where they are given; None without a
        suite.

        Args:
            name: what progress calls the model.
        """
        if self.board is None:
            return None

        def progress(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
            self.progress(f"{name}: {stage}", done, total, figures)

        found = self.board.measure(target, self.tokenizer, progress)
        if dense is None:
            return found
        from disp_llm.evaluation.suites import against

        return against(found, dense)

    def perplexity(self, target: PrunableModel, stage: str) -> Perplexity:
        """Perplexity on the evaluation text; `stage` is what progress calls it."""
        return perplexity(target, self.stream, self.config, counting(self.progress, stage))

    @property
    def prompt(self) -> str:
        """The first tokens of the evaluation text, or the first example's prompt."""
        return self.tokenizer.decode(opening(self.stream, PROMPT_TOKENS))

    def sample(self, model: PreTrainedModel) -> str:
        """What a model writes after them, always taking the likeliest token."""
        start = opening(self.stream, PROMPT_TOKENS)
        return self.tokenizer.decode(continued(model, start, SAMPLE_TOKENS))


def scores_of_original(
    measuring: Measuring, folder: Path, student: Scores, teacher: Teacher | None
) -> Scores | None:
    """The scores that a trained model is held against: those in the card of its folder, if they are
    of this suite; else those of the teacher, if it is the original; else none. A model that was not
    pruned is its own original.

    Args:
        student: what the pruned model scores before it is trained.
    """
    from disp_llm.evaluation.suites import difference

    told = read_facts(folder)
    if told:
        dense = from_json(OriginalResult, told["original"], str(folder / FACTS)).scores
        if dense is not None and not difference(student, dense):
            return dense
    if teacher is not None and (not told or teacher.revision == told["source"]["revision"]):
        return measuring.scores(teacher.target, "original")
    if not told:
        return student
    logger.warning("nothing tells what the original scores on the suite: name it as the teacher")
    return None
