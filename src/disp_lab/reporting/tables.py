"""A comparison as tables of text."""

from collections.abc import Callable, Sequence
from typing import Any

from disp_lab.names import DENSE
from disp_lab.reporting.frontier import frontier_lines
from disp_lab.results import ComparisonRow, comparison_figures
from disp_llm.runs.markdown import escaped, table_row
from disp_llm.runs.naming import names_in, without_paths_in_message
from disp_llm.runs.results import PHASES, kept_said, paired_said, percent_with_error, ratio_said
from disp_llm.runs.scores import Scores

PAIRED = "paired ratio"

FIGURES: dict[str, Callable[[ComparisonRow], str]] = {
    "general_ratio": lambda row: ratio_said(row.scores),
    "kept": lambda row: kept_said(row.scores),
    "perplexity": str,
    PAIRED: lambda row: paired_said(row.paired_ratio, row.paired_ratio_stderr),
}
"""What is said of a row, in this order; the first two where there is a suite, the last where
losses of windows were kept."""


def figures_in(rows: list[ComparisonRow]) -> list[str]:
    """Names of the figures that some row has."""
    has = {name for name, said_of in FIGURES.items() if any(map(said_of, rows))}
    return [name for name in FIGURES if name in has or name == "perplexity"]


def columns(figures: list[str], keeps: list[float]) -> tuple[str, ...]:
    """Names of the columns of `by_method`."""
    alone = len(figures) == 1
    named = (
        f"{'' if alone else f'{figure}, '}keep {keep:g}" for figure in figures for keep in keeps
    )
    return ("method", *named, "tokens", "s")


def by_method(
    rows: list[ComparisonRow], figures: list[str], keeps: list[float]
) -> list[tuple[str, ...]]:
    """For every method its name, every figure for each size (– where there is none), tokens and
    seconds."""
    found: list[tuple[str, ...]] = []
    for method in dict.fromkeys(row.method for row in rows):
        sizes = {row.keep_asked: row for row in rows if row.method == method}
        measured = [row for row in sizes.values() if row.perplexity]
        tokens = " / ".join(dict.fromkeys(f"{row.tokens_seen:,}" for row in measured))
        seconds = " / ".join(dict.fromkeys(_seconds(row) for row in measured))
        cells = (
            FIGURES[figure](sizes[keep]) or "–" if keep in sizes else "–"
            for figure in figures
            for keep in keeps
        )
        found.append((method, *cells, tokens, seconds))
    return found


def _seconds(row: ComparisonRow) -> str:
    """What an attempt took of which no figures are left is not known."""
    return "–" if row.seconds is None else f"{row.seconds:.0f}"


def of_sizes(rows: list[ComparisonRow]) -> list[ComparisonRow]:
    """The rows of models that were made to a number of block parameters, as they were made."""
    return [row for row in rows if row.method != DENSE and row.target is None and not row.weights]


def markdown(result: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """A table with a row for each method and a column for each size, and one of what every model
    costs; with the original among the rows, the frontier too.

    Args:
        result: what `compare.json` holds.
        pictures: names of pictures of the frontier that lie beside the text.
    """
    found = comparison_figures(result)
    keeps, rows = found.asked.keep, of_sizes(found.rows)
    figures = figures_in(rows)
    names = columns(figures, keeps)
    lines = [table_row(names), "|---|" + "---:|" * (len(names) - 1)]
    lines += map(table_row, by_method(rows, figures, keeps))
    told: list[str] = []
    if found.dense and found.source:
        told = ["", f"Dense: {found.dense.measured}, {names_in(found.source['eval_text'])}."]
        told += suite_said(found.dense.scores)
    lines += map(escaped, [*told, *pairs_said(rows)])
    remarks: dict[str, dict[str, None]] = {}
    for row in found.rows:
        if row.error:
            name = row.method if row in rows else row.name
            remarks.setdefault(without_paths_in_message(row.error), {})[name] = None
        elif row.note and not row.weights:
            remarks.setdefault(f"not timed: {row.note}", {})[row.method] = None
    if remarks:
        told = [f"{', '.join(methods)}: {said}" for said, methods in remarks.items()]
        lines += ["", *(f"- {escaped(remark)}" for remark in told)]
    if any(row.speed for row in rows):
        lines += ["", *_costs(rows)]
    frontier = frontier_lines(result)
    lines += ["", "## Frontier", "", *frontier] if frontier else []
    for name in pictures:
        lines += ["", f"![{name}]({name})"]
    return "\n".join(lines) + "\n"


def suite_said(dense: Scores | None) -> list[str]:
    """What the figures of a suite are, and what the original scores; no line without a suite.

    Args:
        dense: the original's scores.
    """
    if dense is None:
        return []
    lines = []
    if dense.texts:
        texts = ", ".join(
            f"{name} (dense {text.perplexity:.2f})" for name, text in dense.texts.items()
        )
        lines.append(f"general_ratio: perplexity / dense perplexity, geometric mean over {texts}.")
    if dense.tasks:
        tasks = ", ".join(
            f"{name} (dense {percent_with_error(task.accuracy, task.stderr)}, "
            f"chance {task.chance:.0%}{f', {task.shots}-shot' if task.shots else ''})"
            for name, task in dense.tasks.items()
        )
        lines.append(f"kept: share of the dense accuracy above chance, mean over {tasks}.")
    return lines


def pairs_said(rows: list[ComparisonRow]) -> list[str]:
    """What the paired ratios are; no line where there are none."""
    references = dict.fromkeys(
        f"{row.paired_with} at {row.keep_asked:g}" for row in rows if row.paired_with
    )
    if not references:
        return []
    return [
        f"{PAIRED}: perplexity / that of {', '.join(references)}, over the same windows; "
        "± is the bootstrap's over these; more than two of them from 1 is a difference."
    ]


def _costs(rows: list[ComparisonRow]) -> list[str]:
    known = any(row.bytes for row in rows)  # not by comparisons that are older
    columns = [
        *("method", "asked", "stored in blocks, share", "all parameters", "FLOPs in blocks, share"),
        *(["all that is stored, MB"] if known else []),
        *("prefill 512, ms", "decode, ms"),
    ]
    lines = [table_row(columns), "|---|" + "---:|" * (len(columns) - 1)]
    for row in rows:
        if row.parameters and row.speed:
            cells = [row.method, f"{row.keep_asked:g}", f"{row.keep:.4f}"]
            cells += [f"{row.parameters / 1e6:.1f} M", f"{row.flops:.2f}"]
            cells += [_megabytes(row)] if known else []
            cells += [
                f"{row.speed[f'{phase}_ms']:.0f} (×{row.speed[f'{phase}_speedup']:.2f})"
                for phase in PHASES
            ]
            lines.append(table_row(cells))
    return lines


def _megabytes(row: ComparisonRow) -> str:
    """Of weights and of what is saved beside them: indices of selections, biases, scales."""
    return "–" if row.bytes is None else f"{row.bytes / 1e6:.1f}"
