"""Scores a model on the texts and tasks of a suite, and its losses against the original.

Both models read the same windows and answer the same questions. Every error is therefore that of
paired differences: what is hard or easy for both models cancels out.

A text of B windows, on which the models lose p_i and d_i nats a token (means over the window, all
of the same length): log ratio = mean(p_i − d_i), and its variance is var(p_i − d_i) / B. The
standard error of the ratio is ratio · √variance (the slope of exp). Over K texts, which are
independent: log general_ratio = mean of the log ratios, and its variance is Σ variances / K².

A task of n questions, answered rightly (1) or not (0) by the models as x_i and y_i, chance c:
kept = (x̄ − c) / (ȳ − c) =: R. By the delta method δR = (δx̄ − R δȳ) / (ȳ − c), so its variance is
var(x_i − R y_i) / (n (ȳ − c)²), in which x_i and y_i of one question stay together. Over K tasks,
which are independent: kept = the mean, and its variance is Σ variances / K².

All variances are sample variances, with n − 1 in the denominator.
"""

import hashlib
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.texts import Suite, SuiteText, at_place
from disp_llm.data.sources import GivenText, characters_for, read_dataset, read_given
from disp_llm.data.spelling import Spelling
from disp_llm.data.tokens import stream_of_text
from disp_llm.evaluation.perplexity import of_windows, require_readable, windows_of
from disp_llm.evaluation.tasks import error_of_mean, load_task, require_tasks, score_task
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import rows_of
from disp_llm.runs.progress import ProgressCallback, counting, silent
from disp_llm.runs.scores import Scores, TaskScore, TextScore
from disp_llm.runs.sums import sha256

logger = logging.getLogger(__name__)

Estimate = tuple[float, float | None]
"""A figure and its standard error; None if there is only one window or question."""


@dataclass(frozen=True)
class Scoreboard:
    """A suite with its texts and tasks read, on which any number of models are measured."""

    suite: Suite
    texts: dict[str, GivenText]
    tasks: dict[str, Any]
    """As `load_task` returns them."""

    @classmethod
    def of(cls, suite: Suite) -> "Scoreboard":
        """Reads the tasks and the texts."""
        if suite.tasks:
            with at_place(suite, "tasks"):
                require_tasks(suite.tasks)
        tasks, texts = {}, {}
        for name, task in suite.tasks.items():
            with at_place(suite, f"tasks.{name}"):
                tasks[name] = load_task(name, (task.metric,), task.data)
        for name, text in suite.texts.items():
            with at_place(suite, f"texts.{name}"):
                texts[name] = _read(text, suite.evaluation.tokens)
        return cls(suite, texts, tasks)

    def measure(
        self,
        target: PrunableModel,
        tokenizer: Any,
        progress: ProgressCallback = silent,
        spelling: Spelling | None = None,
    ) -> Scores:
        """Returns the scores of one model, not yet compared with an original.

        Args:
            tokenizer: tokenises the texts that are cut into windows.
            spelling: maps these tokens to the model's smaller vocabulary; None if it has all.
        """
        texts, tasks = {}, {}
        for name, given in self.texts.items():
            with at_place(self.suite, f"texts.{name}"):
                windows = self._windows(given, target, tokenizer, spelling)
                ticks = counting(progress, f"perplexity, {name}")
                found = of_windows(target, windows, ticks, spelling)
                ids = windows.numpy().astype("<i8").tobytes()
                texts[name] = TextScore(
                    perplexity=found.perplexity,
                    perplexity_stderr=found.perplexity_stderr,
                    tokens=found.tokens,
                    window=found.window,
                    text=given.name,
                    text_sha256=given.sha256,
                    windows_sha256=hashlib.sha256(ids).hexdigest(),
                    losses=found.window_losses,
                )
        reads = tokenizer if spelling is None else spelling.tokenizer
        for name, task in self.suite.tasks.items():
            with at_place(self.suite, f"tasks.{name}"):
                on_request = counting(progress, f"answers, {name}")
                tasks[name] = score_task(target, reads, name, task, self.tasks[name], on_request)
        return Scores(self.suite.name, texts, tasks)

    def require_readable(
        self, target: PrunableModel, tokenizer: Any, spelling: Spelling | None
    ) -> None:
        """Refuses windows that the model cannot read, before anything is measured; as `measure`."""
        for name, given in self.texts.items():
            with at_place(self.suite, f"texts.{name}"):
                windows = self._windows(given, target, tokenizer, spelling)
                require_readable(target, windows, spelling)

    def _windows(
        self, given: GivenText, target: PrunableModel, tokenizer: Any, spelling: Spelling | None
    ) -> Int[Tensor, "B T"]:
        rows = rows_of(target.model) if spelling is None else None
        stream = stream_of_text(given, tokenizer, rows)
        windows = windows_of(target, stream, self.suite.evaluation, spelling)
        return windows[:: self.suite.every]


def _read(text: SuiteText, tokens: int) -> GivenText:
    if text.sha256 and sha256(text.files[0]) != text.sha256:
        raise InputError(
            f"{text.files[0].name} is not the file that the suite means",
            field="suite",
            hint=f"get it from {text.origin or 'where its author has it'}",
        )
    if text.rows:
        return read_dataset(text.dataset, text.field, "test", streams=True, rows=text.rows)
    characters = characters_for(tokens)
    given = read_given(text.files, text.dataset, text.field, "test", characters=characters)
    assert given is not None  # a suite's text names either files or a dataset
    return given


def against(scores: Scores, original: Scores) -> Scores:
    """Returns the scores of a pruned model with its original's and the losses against them.

    Raises:
        InputError: the two did not read the same windows and answer the same questions.
    """
    place = difference(scores, original)
    if place:
        raise InputError(
            f"the original was measured on other {place}",
            field="suite",
            hint="measure both by the same suite, and models of one tokenizer",
        )
    texts = {key: _text_against(text, original.texts[key]) for key, text in scores.texts.items()}
    tasks = {
        key: _task_against(key, task, original.tasks[key]) for key, task in scores.tasks.items()
    }
    lost = [(t.ratio, t.ratio_stderr) for t in texts.values() if t.ratio is not None]
    kept = [(t.kept, t.kept_stderr) for t in tasks.values() if t.kept is not None]
    ratio = geometric_mean(lost) if lost else (None, None)
    share = mean(kept) if kept else (None, None)
    return Scores(scores.suite, texts, tasks, *ratio, *share)


def difference(scores: Scores, original: Scores) -> str:
    """Returns the first text or task on which two models read different windows or answered
    different questions, such as `texts.C4`; empty if there is none."""
    ours, theirs = _measured_on(scores), _measured_on(original)
    return next((place for place in ours | theirs if ours.get(place) != theirs.get(place)), "")


def _measured_on(scores: Scores) -> dict[str, tuple[Any, ...]]:
    texts = {f"texts.{key}": (t.window, t.windows_sha256) for key, t in scores.texts.items()}
    return texts | {
        f"tasks.{key}": (t.questions_sha256, t.metric, t.chance) for key, t in scores.tasks.items()
    }


def _text_against(text: TextScore, original: TextScore) -> TextScore:
    ratio, error = loss_ratio(text.losses, original.losses)
    return replace(text, original=original.perplexity, ratio=ratio, ratio_stderr=error)


def _task_against(name: str, task: TaskScore, original: TaskScore) -> TaskScore:
    if original.accuracy <= task.chance:
        logger.warning(
            "%s: the original is right in %.1f %%, which is not above chance; it does not count "
            "in what is kept", name, 100 * original.accuracy,
        )  # fmt: skip
        return replace(task, original=original.accuracy)
    kept, error = kept_above_chance(
        [float(digit) for digit in task.right],
        [float(digit) for digit in original.right],
        task.chance,
    )
    return replace(task, original=original.accuracy, kept=kept, kept_stderr=error)


def loss_ratio(pruned: Sequence[float], original: Sequence[float]) -> Estimate:
    """Returns pruned / original perplexity from the mean losses of the same windows, paired."""
    differences = [p - d for p, d in zip(pruned, original, strict=True)]
    ratio = math.exp(statistics.fmean(differences))
    return ratio, _scaled(ratio, error_of_mean(differences))


def kept_above_chance(
    pruned: Sequence[float], original: Sequence[float], chance: float
) -> Estimate:
    """Returns `(pruned accuracy − chance) / (original accuracy − chance)` from the answers (1 or 0)
    to the same questions, paired, with its error by the delta method."""
    above = statistics.fmean(original) - chance
    kept = (statistics.fmean(pruned) - chance) / above
    residuals = [x - kept * y for x, y in zip(pruned, original, strict=True)]
    return kept, _scaled(1 / above, error_of_mean(residuals))


def geometric_mean(ratios: Sequence[tuple[float, float | None]]) -> Estimate:
    """Returns the geometric mean of independent ratios, given with their errors."""
    logs = [(math.log(ratio), _scaled(1 / ratio, error)) for ratio, error in ratios]
    log, error = mean(logs)
    return math.exp(log), _scaled(math.exp(log), error)


def mean(figures: Sequence[tuple[float, float | None]]) -> Estimate:
    """Returns the mean of independent figures; its error is None if one of them has none."""
    value = statistics.fmean(figure for figure, _ in figures)
    errors = [error for _, error in figures if error is not None]
    if len(errors) < len(figures):
        return value, None
    return value, math.hypot(*errors) / len(figures)


def _scaled(slope: float, error: float | None) -> float | None:
    return None if error is None else abs(slope) * error
