"""A comparison as tables, in a terminal and in `compare.md`."""

import re
from collections.abc import Callable
from typing import Any

from disp_lab.reporting.frontier import Frontier, has_original
from disp_lab.results import ComparisonFigures, ComparisonRow, comparison_figures, of_sizes
from disp_llm.config.names import name_of
from disp_llm.reporting.tables import Table
from disp_llm.reporting.terminal import say
from disp_llm.runs.markdown import escaped
from disp_llm.runs.results import PHASES
from disp_llm.runs.scores import Scores, kept_said, paired_said, percent_with_error, ratio_said

PAIRED = "paired ratio"

FIGURES: dict[str, Callable[[ComparisonRow], str]] = {
    "general_ratio": lambda row: ratio_said(row.scores),
    "kept": lambda row: kept_said(row.scores),
    "perplexity": str,
    PAIRED: lambda row: paired_said(row.paired_ratio, row.paired_ratio_stderr),
}
"""Formats of a row's figures, in table order; the first two need a suite, the last needs window
losses."""


def show_comparison(result: dict[str, Any]) -> None:
    """Prints a table for each figure of `compare.json`, with a row per method and a column per
    size; then errors, notes and, if the original is among the rows, the frontier."""
    found = comparison_figures(result)
    for figure in _figures_in(found):
        _by_method(found, [figure]).show()
    for row in found.rows:
        if row.error:
            say(f"{row.name}: {row.error}")
    for line in _notes(found):
        say(line)
    if has_original(found):
        Frontier(found).table().show()


def markdown(result: dict[str, Any], picture: str = "") -> str:
    """Returns `compare.md`: a table with a row per method and a column per size, one of every
    model's costs and, if the original is among the rows, the frontier.

    Args:
        result: content of `compare.json`.
        picture: name of the frontier's picture beside the text; empty = none.
    """
    found = comparison_figures(result)
    lines = [*_by_method(found, _figures_in(found)).markdown(), ""]
    lines += map(escaped, _notes(found))
    remarks = _remarks(found)
    lines += ["", *(f"- {escaped(remark)}" for remark in remarks)] if remarks else []
    costs = _costs(of_sizes(found.rows))
    lines += ["", *costs.markdown()] if costs.rows else []
    if has_original(found):
        lines += ["", "## Frontier", "", *Frontier(found).table().markdown()]
    lines += ["", f"![{picture}]({picture})"] if picture else []
    return "\n".join(lines) + "\n"


def _figures_in(found: ComparisonFigures) -> list[str]:
    """Returns names of the figures that some row has, and always perplexity."""
    rows = of_sizes(found.rows)
    return [name for name, of in FIGURES.items() if name == "perplexity" or any(map(of, rows))]


def _by_method(found: ComparisonFigures, figures: list[str]) -> Table:
    """Returns a table of each method's figures at each size (– if missing), tokens and seconds."""
    rows, keeps = of_sizes(found.rows), found.asked.keep
    table: list[tuple[str, ...]] = []
    for method in dict.fromkeys(row.method for row in rows):
        sizes = {row.keep_asked: row for row in rows if row.method == method}
        measured = [row for row in sizes.values() if row.perplexity]
        tokens = dict.fromkeys(f"{row.tokens_seen:,}" for row in measured)
        # Unknown if no figures are left of the attempt, or another machine made it.
        seconds = dict.fromkeys(
            "–" if row.seconds is None else f"{row.seconds:.0f}" for row in measured
        )
        cells = (
            FIGURES[figure](sizes[keep]) or "–" if keep in sizes else "–"
            for figure in figures
            for keep in keeps
        )
        table.append((method, *cells, " / ".join(tokens), " / ".join(seconds)))
    alone = len(figures) == 1
    sizes_of = ("" if alone else f"{figure}, " for figure in figures)
    names = (f"{figure}keep {keep:g}" for figure in sizes_of for keep in keeps)
    return Table(("method", *names, "tokens", "s"), table, f"{found.asked.model}, {figures[0]}")


def _notes(found: ComparisonFigures) -> list[str]:
    """Returns lines on what the figures were measured over, and on the original's scores."""
    if found.original is None or found.source is None:
        return []
    text = found.source["eval_text"]
    scores = _scores_of_original(found.original.scores) if found.original.scores else []
    return [f"Original: {found.original.measured}, {text}.", *scores, *_pairs(of_sizes(found.rows))]


def _scores_of_original(original: Scores) -> list[str]:
    lines = []
    if original.texts:
        texts = ", ".join(
            f"{name} (original {text.perplexity:.2f})" for name, text in original.texts.items()
        )
        lines.append(
            f"general_ratio: times the original's perplexity, geometric mean over {texts}."
        )
    if original.tasks:
        tasks = ", ".join(
            f"{name} (original {percent_with_error(task.accuracy, task.stderr)}, "
            f"chance {task.chance:.0%}{f', {task.shots}-shot' if task.shots else ''})"
            for name, task in original.tasks.items()
        )
        lines.append(f"kept: share of the original's accuracy above chance, mean over {tasks}.")
    return lines


def _pairs(rows: list[ComparisonRow]) -> list[str]:
    """Returns a line that explains the paired ratios; none if there are none."""
    references = dict.fromkeys(
        f"{row.paired_with} at {row.keep_asked:g}" for row in rows if row.paired_with
    )
    if not references:
        return []
    return [
        f"{PAIRED}: perplexity / that of {', '.join(references)}, over the same windows; "
        "± is the bootstrap's over these; more than two of them from 1 is a difference."
    ]


def _remarks(found: ComparisonFigures) -> list[str]:
    """Returns why rows have no figures or no time, grouped by reason."""
    methods: dict[str, dict[str, None]] = {}
    counted = of_sizes(found.rows)
    for row in found.rows:
        if row.error:
            name = row.method if row in counted else row.name
            methods.setdefault(without_paths(row.error), {})[name] = None
        elif row.note and not row.weights:
            methods.setdefault(f"not timed: {row.note}", {})[row.method] = None
    return [f"{', '.join(names)}: {said}" for said, names in methods.items()]


def _costs(rows: list[ComparisonRow]) -> Table:
    """Returns a table of what every timed model stores, computes and takes."""
    columns = (
        *("method", "asked", "stored in blocks, share", "all parameters", "FLOPs in blocks, share"),
        *("all that is stored, MB", "prefill 512, ms", "decode, ms"),
    )
    table = [
        (
            row.method,
            f"{row.keep_asked:g}",
            f"{row.keep:.4f}",
            f"{row.parameters / 1e6:.1f} M",
            f"{row.flops:.2f}",
            "–" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
            *(
                f"{row.speed[f'{phase}_ms']:.0f} (×{row.speed[f'{phase}_speedup']:.2f})"
                for phase in PHASES
            ),
        )
        for row in rows
        if row.parameters and row.speed
    ]
    return Table(columns, table)


def without_paths(message: str) -> str:
    """Shortens every path in a message to its last part."""
    return re.sub(
        r"[^\s'\"`(),;]*/[^\s'\"`(),;:]*",
        lambda found: found[0] if "://" in found[0] else name_of(found[0]),
        message,
    )
