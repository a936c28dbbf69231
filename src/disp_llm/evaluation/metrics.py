"""How good written answers are: exact match, overlap of words, or a function of another package.

A metric is given all answers and all references, and returns a number for each, whose mean then has
a standard error, or one number for all of them (such as an F1 over spans). Another package adds one
by an entry point of the group `disp_llm.metrics`; its name is that of the metric.
"""

import math
import statistics
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.schema import Amount, Size
from disp_llm.runs.scores import Finite

PLUGINS = "disp_llm.metrics"

Metric = Callable[[Sequence[str], Sequence[str]], float | Sequence[float]]
"""Answers and references, in the same order -> a number for each, or one for all."""


@dataclass(frozen=True)
class AnswerScore:
    """What a model's answers score by a metric."""

    metric: str
    score: Finite
    score_stderr: Amount | None
    """None where the metric gives one number for all answers, or there is a single one."""
    answers: Size
    """How many were written."""


def exact_match(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 where the answer is the reference, but for white space at either end."""
    return [float(a.strip() == r.strip()) for a, r in zip(answers, references, strict=True)]


def f1(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Harmonic mean of the share of the answer's words that the reference has and of the
    reference's that the answer has, each counted as often as both have it; case and punctuation do
    not count (as for SQuAD, arXiv 1606.05250, which drops articles besides)."""
    return [_overlap(_words(a), _words(r)) for a, r in zip(answers, references, strict=True)]


def _words(text: str) -> Counter[str]:
    stripped = (word.strip(string.punctuation) for word in text.casefold().split())
    return Counter(word for word in stripped if word)


def _overlap(answer: Counter[str], reference: Counter[str]) -> float:
    total = answer.total() + reference.total()
    return 2 * (answer & reference).total() / total if total else 1.0


METRICS: dict[str, Metric] = {"exact_match": exact_match, "f1": f1}
"""Those of this package."""


def metric_named(name: str) -> Metric:
    """The metric of that name: ours, or of an installed package.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    added = {entry.name: entry for entry in entry_points(group=PLUGINS)}
    if name in METRICS:
        return METRICS[name]
    if name in added:
        try:
            return added[name].load()
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"{name} ({added[name].value}) cannot be loaded ({error})",
                field="metric",
                hint="repair or remove the package that adds it",
            ) from error
    known = [*METRICS, *added]
    raise InputError(
        f"no metric '{name}'{nearest(name, known)}",
        field="metric",
        hint=f"use one of {', '.join(known)}, or add one by an entry point of {PLUGINS}",
    )


def rights(name: str, answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Which answers are right (1) and which are wrong (0) by a metric that says so.

    Raises:
        InputError: no such metric, or one that gives something else.
    """
    found = metric_named(name)(answers, references)
    values = [] if isinstance(found, int | float) else [float(value) for value in found]
    if len(values) != len(answers) or any(value not in (0, 1) for value in values):
        raise InputError(
            f"{name} does not say of every answer whether it is right",
            field="metric",
            hint="use exact_match, or a metric that gives 0 or 1 for each",
        )
    return values


def scored(name: str, answers: Sequence[str], references: Sequence[str]) -> AnswerScore:
    """What answers score.

    Raises:
        InputError: no such metric, or it does not give what a metric gives.
    """
    found = metric_named(name)(answers, references)
    if isinstance(found, int | float):
        return AnswerScore(name, float(found), None, len(answers))
    values = [float(value) for value in found]
    if len(values) != len(answers):
        raise InputError(
            f"{name} gave {len(values)} numbers for {len(answers)} answers",
            field="metric",
            hint="correct it: one for each, or one for all",
        )
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return AnswerScore(name, statistics.fmean(values), error, len(values))
