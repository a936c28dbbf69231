"""Measures every model of one run or command alike: on a text, on a suite, and by a sample."""

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
"""Tokens of the prompt, and most tokens of the sample that a model writes after it."""


def scoreboard_of(suite: str, dense: Scores | None) -> Scoreboard | None:
    """Loads a suite and reads its texts; returns None if no suite is named.

    Args:
        dense: scores of the original from an earlier, interrupted attempt.

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
    """The evaluation text, how it is read, and the suite if there is one."""

    stream: Stream
    config: PerplexityConfig
    tokenizer: Any
    progress: ProgressCallback
    board: Scoreboard | None = None
    """Suite that models are also measured on; None if there is none."""
    spelling: Spelling | None = None
    """Maps the text's tokens to the models' smaller vocabulary; None if theirs is the whole one."""

    @classmethod
    def of(cls, job: Job, texts: Texts, tokenizer: Any, board: Scoreboard | None) -> "Measuring":
        """Collects what a job measures its models on."""
        return cls(texts.evaluation, job.config.evaluation, tokenizer, job.progress, board)

    @property
    def of_original(self) -> "Measuring":
        """The same measurements for a model with the whole vocabulary."""
        return replace(self, spelling=None)

    def require_suite(self, target: PrunableModel) -> None:
        """Refuses a suite whose windows are too long in the models' smaller vocabulary. What the
        original cannot read is refused where it is measured, which comes first."""
        if self.board is not None and self.spelling is not None:
            self.board.require_readable(target, self.tokenizer, self.spelling)

    def scores(
        self, target: PrunableModel, name: str, dense: Scores | None = None
    ) -> Scores | None:
        """Returns scores on the suite, compared with the original's if given; None without a suite.
        Progress messages call the model by its `name`."""
        if self.board is None:
            return None

        def progress(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
            self.progress(f"{name}: {stage}", done, total, figures)

        found = self.board.measure(target, self.tokenizer, progress, self.spelling)
        return found if dense is None else against(found, dense)

    def perplexity(self, target: PrunableModel, stage: str) -> Perplexity:
        """Measures perplexity on the evaluation text; `stage` names it in progress messages."""
        ticks = counting(self.progress, stage)
        return perplexity(target, self.stream, self.config, ticks, self.spelling)

    def opening(self, tokens: int) -> Int[Tensor, " N"]:
        """Returns the first tokens of the evaluation text, or the first example's whole prompt, in
        the models' vocabulary."""
        start = opening(self.stream, tokens)
        return start if self.spelling is None else self.spelling(start)

    @property
    def prompt(self) -> str:
        """Text of the first evaluation tokens, or the first example's prompt."""
        return self.tokenizer.decode(opening(self.stream, PROMPT_TOKENS))

    def sample(self, model: PreTrainedModel) -> str:
        """Returns what a model writes after the prompt by greedy decoding. A model with too few
        positions reads less of the prompt and writes less, but one token at least."""
        tokenizer = self.tokenizer if self.spelling is None else self.spelling.tokenizer
        start = self.opening(PROMPT_TOKENS)
        most = fitting(model, len(start) + SAMPLE_TOKENS)
        start = start[None, :most].to(model.device)
        seen, room = torch.ones_like(start), max(1, most - start.shape[1])
        with likeliest(model) as generate:
            made = generate(start, attention_mask=seen, max_new_tokens=room, pad_token_id=0)
        return tokenizer.decode(made[0, start.shape[1] :])
