"""What every model of one task is measured on: a text, a suite, a sample of its words."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig
from disp_llm.config.texts import load_suite
from disp_llm.data.spelling import Spelling
from disp_llm.data.tokens import Texts
from disp_llm.data.windows import Stream, opening
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.evaluation.sample import likeliest
from disp_llm.evaluation.suites import Scoreboard, against
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import fitting
from disp_llm.runs.job import Job
from disp_llm.runs.progress import ProgressCallback, counting
from disp_llm.runs.scores import Perplexity, Scores

PROMPT_TOKENS, SAMPLE_TOKENS = 32, 48
"""Tokens of the prompt, and of the text that shows what a model writes after it."""


def scoreboard_of(suite: str, dense: Scores | None) -> Scoreboard | None:
    """The suite that a task measures its models on, its texts read; None where it names none.

    Args:
        dense: what an earlier attempt at the task has measured of the original.

    Raises:
        InputError: the original was measured on other texts.
    """
    if not suite:
        return None
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
    board: Scoreboard | None = None
    """The suite that models are measured on besides, if any."""
    spelling: Spelling | None = None
    """Of its tokens in those of the models, where their vocabulary is a smaller one."""

    @classmethod
    def of(cls, job: Job, texts: Texts, tokenizer: Any, board: Scoreboard | None) -> "Measuring":
        """What a job measures its models on."""
        return cls(texts.evaluation, job.config.evaluation, tokenizer, job.progress, board)

    @property
    def of_original(self) -> "Measuring":
        """The same for a model with the whole vocabulary."""
        return replace(self, spelling=None)

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

        found = self.board.measure(target, self.tokenizer, progress, self.spelling)
        return found if dense is None else against(found, dense)

    def perplexity(self, target: PrunableModel, stage: str) -> Perplexity:
        """Perplexity on the evaluation text; `stage` is what progress calls it."""
        ticks = counting(self.progress, stage)
        return perplexity(target, self.stream, self.config, ticks, self.spelling)

    def opening(self, tokens: int) -> Int[Tensor, " N"]:
        """The first tokens of the evaluation text, or the first example's prompt, as models read
        them."""
        start = opening(self.stream, tokens)
        return start if self.spelling is None else self.spelling(start)

    @property
    def prompt(self) -> str:
        """The first tokens of the evaluation text, or the first example's prompt."""
        return self.tokenizer.decode(opening(self.stream, PROMPT_TOKENS))

    def sample(self, model: PreTrainedModel) -> str:
        """What a model writes after as many of them as it reads, always taking the likeliest token,
        as far as it has positions."""
        tokenizer = self.tokenizer if self.spelling is None else self.spelling.tokenizer
        start = self.opening(PROMPT_TOKENS)
        most = fitting(model, len(start) + SAMPLE_TOKENS)
        start = start[None, :most].to(model.device)
        seen, room = torch.ones_like(start), max(1, most - start.shape[1])
        with likeliest(model) as generate:
            made = generate(start, attention_mask=seen, max_new_tokens=room, pad_token_id=0)
        return tokenizer.decode(made[0, start.shape[1] :])
