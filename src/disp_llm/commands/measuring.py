"""What every model of one task is measured on: a text, a suite, a sample of its words."""

import gc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from disp_llm.commands.api import Inputs
from disp_llm.config.errors import InputError
from disp_llm.config.parts import MachineConfig, PerplexityConfig
from disp_llm.config.suites import load_suite
from disp_llm.data.tokens import Stream, Texts, opening
from disp_llm.evaluation.answers import likeliest
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import dtype_name
from disp_llm.models.loading import Loaded
from disp_llm.models.windows import fitting
from disp_llm.runs.job import Job
from disp_llm.runs.progress import ProgressCallback
from disp_llm.runs.scores import Perplexity, Scores

if TYPE_CHECKING:
    from disp_llm.models.sharding import Sharding

if TYPE_CHECKING:
    from disp_llm.evaluation.suites import Scoreboard

PROMPT_TOKENS, SAMPLE_TOKENS = 32, 48
"""Tokens of the prompt, and of the text that shows what a model writes after it."""


def facts_of(loaded: Loaded, target: PrunableModel) -> dict[str, Any]:
    """Which model it is that was measured, in what data type, and its size."""
    return {
        "model": loaded.source["model"],
        "revision": loaded.source["revision"],
        "dtype": dtype_name(target.dtype),
        "parameters": target.parameters,
        "block_parameters": target.block_parameters,
    }


def scoreboard_of(suite: str, dense: Scores | None) -> "Scoreboard | None":
    """The suite that a task measures its models on, its texts read; None where it names none.

    Args:
        dense: what an earlier attempt at the task has measured of the original.

    Raises:
        InputError: it is unusable, or the original was measured on other texts or tasks.
    """
    if not suite:
        return None
    from disp_llm.evaluation.suites import Scoreboard, require_suite

    board = Scoreboard.of(load_suite(suite))
    if dense is not None:
        try:
            require_suite(board, dense, "suite")
        except InputError as error:
            raise InputError(
                f"is not what the original was measured on: that {error.what}",
                field="suite",
                hint="make it what it was, or start anew in another `output_dir`",
            ) from error
    return board


def measured_apart(
    board: "Scoreboard",
    inputs: "Inputs | Sharding",
    name: str,
    machine: MachineConfig,
    recorded: dict[str, str] | None = None,
) -> tuple[dict[str, Any], Scores]:
    """Facts about a model, and its scores; its memory is free afterwards.

    Args:
        inputs: what of it lies in memory, or what is to hold it.
        recorded: what a record says of where it came from, by which its revision is told.
    """
    measured = _loaded_and_measured(board, inputs, name, machine, recorded or {})
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return measured


def _loaded_and_measured(
    board: "Scoreboard",
    inputs: "Inputs | Sharding",
    name: str,
    machine: MachineConfig,
    recorded: dict[str, str],
) -> tuple[dict[str, Any], Scores]:
    loaded = inputs.load(name, machine).as_recorded(recorded)
    target = PrunableModel.of(loaded)
    measured = facts_of(loaded, target), board.measure(target, loaded.tokenizer)
    if loaded.sharding is not None:
        loaded.sharding.drop(loaded.model)
    return measured


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

        found = replace(self.board, progress=progress).measure(target, self.tokenizer)
        if dense is None:
            return found
        from disp_llm.evaluation.suites import against

        return against(found, dense, "suite")

    def perplexity(self, target: PrunableModel, stage: str) -> Perplexity:
        """Perplexity on the evaluation text; `stage` is what progress calls it."""

        def on_window(done: int, total: int) -> None:
            self.progress(stage, done, total, {})

        return perplexity(target, self.stream, self.config, on_window)

    @property
    def prompt(self) -> str:
        """The first tokens of the evaluation text, or the first example's prompt."""
        return self.tokenizer.decode(opening(self.stream, PROMPT_TOKENS))

    def sample(self, model: PreTrainedModel) -> str:
        """What a model writes after them, always taking the likeliest token."""
        start = opening(self.stream, PROMPT_TOKENS)
        prompt = start[: fitting(model, len(start))][None].to(model.device)
        room = fitting(model, len(start) + SAMPLE_TOKENS) - prompt.shape[1]
        with likeliest(model) as generate:
            made = generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=max(1, min(SAMPLE_TOKENS, room)),
                pad_token_id=0,
            )
        return self.tokenizer.decode(made[0, prompt.shape[1] :])
