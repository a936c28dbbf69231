"""A comparison as tables of text."""

from typing import Any

from disp_llm.reporting.reading import comparison_figures
from disp_llm.runs.naming import names_in, without_paths_in_message
from disp_llm.runs.results import ComparisonRow

PHASES = ("prefill", "decode")
"""What is timed of every model."""


def by_method(rows: list[ComparisonRow], keeps: list[float]) -> list[tuple[str, ...]]:
    """For every method its name, a perplexity for each size (– where there is none), tokens and
    seconds."""
    found: list[tuple[str, ...]] = []
    for method in dict.fromkeys(row.method for row in rows):
        sizes = {row.keep_asked: row for row in rows if row.method == method}
        measured = [row for row in sizes.values() if row.perplexity]
        tokens = " / ".join(dict.fromkeys(f"{row.tokens_seen:,}" for row in measured))
        seconds = " / ".join(dict.fromkeys(_seconds(row) for row in measured))
        found.append((method, *(str(sizes.get(keep, "–")) for keep in keeps), tokens, seconds))
    return found


def _seconds(row: ComparisonRow) -> str:
    """What an attempt took of which no figures are left is not known."""
    return "–" if row.seconds is None else f"{row.seconds:.0f}"


def markdown(result: dict[str, Any]) -> str:
    """A table with a row for each method and a column for each size, and one of what every model
    costs.

    Args:
        result: what `compare.json` holds.
    """
    found = comparison_figures(result)
    keeps, rows = found.asked.keep, found.rows
    lines = ["| method | " + " | ".join(f"keep {keep:g}" for keep in keeps) + " | tokens | s |"]
    lines.append("|---|" + "---:|" * (len(keeps) + 2))
    lines += [f"| {' | '.join(cells)} |" for cells in by_method(rows, keeps)]
    if found.dense and found.source:
        lines += ["", f"Dense: {found.dense}, {names_in(found.source['eval_text'])}."]
    failed: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.error:
            failed.setdefault(without_paths_in_message(row.error), {})[row.method] = None
    if failed:
        lines += ["", *(f"- {', '.join(methods)}: {error}" for error, methods in failed.items())]
    if any(row.speed for row in rows):
        lines += ["", *_costs(rows)]
    return "\n".join(lines) + "\n"


def _costs(rows: list[ComparisonRow]) -> list[str]:
    lines = [
        "| method | asked | stored in blocks | all parameters | FLOPs in blocks "
        "| prefill 512, ms | decode, ms |",
        "|---|" + "---:|" * 6,
    ]
    for row in rows:
        if row.parameters and row.speed:
            times = (
                f"{row.speed[f'{phase}_ms']:.0f} (×{row.speed[f'{phase}_speedup']:.2f})"
                for phase in PHASES
            )
            lines.append(
                f"| {row.method} | {row.keep_asked:g} | {row.keep:.4f} | "
                f"{row.parameters / 1e6:.1f} M | {row.flops:.2f} | {' | '.join(times)} |"
            )
    return lines
