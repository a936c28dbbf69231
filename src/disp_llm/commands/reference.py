"""What every row of a comparison is measured with: the original model, the texts, the suite, the
clock."""

import statistics
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedModel

from disp_llm.commands.measuring import Measuring
from disp_llm.config.compare import CompareConfig
from disp_llm.data.tokens import Texts, load_tokens
from disp_llm.evaluation.suites import Scoreboard
from disp_llm.evaluation.timing import Workload, fitted, in_turn, runner
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.parts.baseline import stored_numbers
from disp_llm.models.loading import Loaded, load
from disp_llm.runs.progress import ProgressCallback
from disp_llm.runs.results import OriginalResult

WORKLOADS = {"prefill": Workload("prefill", 512, 1), "decode": Workload("decode", 512, 1)}
"""What is timed, as far as the model can read."""


@dataclass(frozen=True)
class Reference:
    """Original model and texts, loaded when first needed."""

    config: CompareConfig
    board: Scoreboard | None = None
    """The suite, if there is one."""

    @cached_property
    def loaded(self) -> Loaded:
        """The original."""
        return load(self.config.model, self.config.machine, dense_only=True)

    @cached_property
    def dense(self) -> PrunableModel:
        """The original, as pruning sees it."""
        return PrunableModel.of(self.loaded)

    @cached_property
    def texts(self) -> Texts:
        """Learning and evaluation text."""
        return load_tokens(self.config.text, self.loaded.tokenizer, self.loaded.bos_token_id)

    @property
    def sources(self) -> dict[str, str]:
        """Names of model and texts."""
        return self.loaded.source | self.texts.names

    def measuring(self, progress: ProgressCallback) -> Measuring:
        """How models are measured."""
        stream, tokenizer = self.texts.evaluation, self.loaded.tokenizer
        return Measuring(stream, self.config.evaluation, tokenizer, progress, self.board)

    def original(self, progress: ProgressCallback) -> OriginalResult:
        """Measures the original."""
        measuring = self.measuring(progress)
        return OriginalResult(
            measured=measuring.perplexity(self.dense, "perplexity"),
            parameters=self.dense.parameters,
            block_parameters=stored_numbers(self.dense),
            scores=measuring.scores(self.dense, "suite"),
        )

    def speed(self, model: PreTrainedModel, progress: ProgressCallback) -> dict[str, float]:
        """Medians of milliseconds, and of how many times as fast as the original, timed in turn."""
        figures: dict[str, float] = {}
        rounds = self.config.rounds
        if not rounds:
            return figures
        for phase, usual in WORKLOADS.items():
            workload = fitted(usual, model)

            def on_round(done: int, phase: str = phase) -> None:
                progress(f"timing {phase}", done, rounds, {})

            runs = [runner(one, workload) for one in (self.loaded.model, model)]
            dense, own = in_turn(runs, rounds, on_round)
            ratios = [before / after for before, after in zip(dense, own, strict=True)]
            figures[f"{phase}_ms"] = 1e3 * statistics.median(own)
            figures[f"{phase}_speedup"] = statistics.median(ratios)
        return figures
