"""What models score, as tables and lines."""

from typing import Any

from disp_llm.config.schema import as_type
from disp_llm.evaluation.metrics import AnswerScore
from disp_llm.reporting.tables import new_table
from disp_llm.reporting.terminal import results, say
from disp_llm.runs.results import (
    Perplexity,
    from_json,
    kept_said,
    percent_with_error,
    ratio_said,
    with_error,
)
from disp_llm.runs.scores import Scores


def show_evaluation(result: dict[str, Any]) -> None:
    """What `eval` measured, and over what; of a suite, what is lost and kept first."""
    if "suite" in result:
        show_scores(result)
    say(
        f"{result['model']}: {result['parameters']:,} parameters, "
        f"{result['block_parameters']:,} in blocks, {result['dtype']}"
    )
    if "suite" in result:
        return
    if "perplexity" in result:
        measured = from_json(Perplexity, result, result["model"])
        say(
            f"perplexity {measured}  ({measured.tokens:,} tokens of {result['text']}, "
            f"window {measured.window}, stride {measured.stride})"
        )
    if "answers" in result:
        found: AnswerScore = as_type(
            result["answers"], AnswerScore, field=result["model"], hint="measure it again"
        )
        score = with_error(found.score, found.score_stderr, 3)
        say(f"{found.metric} {score}  ({found.answers:,} answers)")
    if "tasks" in result:
        names = ("task", "metric", "accuracy", "standard error", "questions", "shots")
        table = new_table(names, left=("task", "metric"))
        for name, found in result["tasks"].items():
            value, error = found[found["metric"]], found["stderr"]
            counts = f"{found['n']:,}", str(found["shots"])
            table.add_row(name, found["metric"], f"{value:.2%}", f"{error:.2%}", *counts)
        table.add_row("average", "", f"{result['average']:.2%}", "", "", "")
        results.print(table)


def show_scores(result: dict[str, Any]) -> None:
    """What a model scores on a suite."""
    found: Scores = as_type(result, Scores, field=result["model"], hint="measure it again")
    said = []
    if found.general_ratio is not None:
        said.append(f"perplexity of the texts {ratio_said(found)}")
    if found.kept is not None:
        said.append(f"kept of the tasks {kept_said(found)}")
    say(f"{found.suite}: {', '.join(said) or 'no original to compare with'}")
    if found.texts:
        table = new_table(("text", "perplexity", "original", "ratio"))
        for name, text in found.texts.items():
            original = "" if text.original is None else with_error(text.original, None)
            ratio = "" if text.ratio is None else with_error(text.ratio, text.ratio_stderr, 3)
            measured = with_error(text.perplexity, text.perplexity_stderr)
            table.add_row(name, measured, original, ratio)
        results.print(table)
    if found.tasks:
        table = new_table(
            ("task", "metric", "accuracy", "original", "chance", "kept", "questions", "shots"),
            left=("task", "metric"),
        )
        for name, task in found.tasks.items():
            original = "" if task.original is None else percent_with_error(task.original, None)
            kept = "" if task.kept is None else percent_with_error(task.kept, task.kept_stderr)
            right = percent_with_error(task.accuracy, task.stderr)
            chance = percent_with_error(task.chance, None)
            counts = f"{task.n:,}", str(task.shots)
            table.add_row(name, task.metric, right, original, chance, kept, *counts)
        results.print(table)
