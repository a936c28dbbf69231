"""Methods over several seeds, each beside ours of the same seed: parts of results/NAME.md."""

import statistics
from collections.abc import Callable, Sequence

from comparison_rows import WHOLE, rows_of
from markdown_table import table
from over_seeds import Paired

from disp_lab.comparison.paired_statistics import paired_ratio
from disp_llm.evaluation.suites import Estimate, geometric_mean


def seeds_table(results: list[dict], ours: str) -> list[str]:
    """A row for each method and size: figures by seed, and how many times those of ours they are.

    Args:
        ours: the method that the others are paired with.
    """
    rows = [
        row | {"seed": row["provenance"]["seed"]} for result in results for row in rows_of(result)
    ]
    of_a_suite = all(len(row["texts"]) > 1 for row in rows)
    figures, loss, pair = GENERAL if of_a_suite else DOMAIN
    columns = ["method", "keep", *figures, "times ours of that seed", "over seeds", "tokens"]
    lines = []
    by_place: dict[tuple[str, float], list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        by_place.setdefault((row["method"], row["keep_asked"]), []).append(row)
    for keep in sorted({keep for _, keep in by_place}, reverse=True):
        of_size = {method: found for (method, size), found in by_place.items() if size == keep}
        of_ours = {row["seed"]: row for row in of_size[ours]}
        for method, found in sorted(of_size.items(), key=lambda item: _mean(item[1], loss)):
            pairs = [] if method == ours else [pair(row, of_ours[row["seed"]]) for row in found]
            cells = [f"`{method}`", f"{keep:g}"]
            cells += [_by_seed(map(figure, found)) for figure in figures.values()]
            beside = [loss(of_ours[row["seed"]]) for row in found] if pairs else []
            over_seeds = Paired.of([loss(row) for row in found], beside).said if pairs else "–"
            cells += [_by_seed(map(_times, pairs)), over_seeds, f"{found[0]['tokens_seen']:,}"]
            lines.append(cells)
    return table(columns, lines, "lr" + "l" * (len(columns) - 3) + "r")


def ahead_in(
    results: list[dict], ours: str, others: Sequence[str], keeps: Sequence[float]
) -> list[bool]:
    """For each seed whether ours is ahead, by two errors, of all these methods that have it, at
    all these sizes."""
    rows: dict[tuple[int, float], dict[str, dict]] = {}
    for row in [row for result in results for row in rows_of(result)]:
        rows.setdefault((row["provenance"]["seed"], row["keep_asked"]), {})[row["method"]] = row

    def ahead(seed: int, keep: float) -> bool:
        found = rows[seed, keep]
        pairs = [_pair_of_texts(found[one], found[ours]) for one in others if one in found]
        return all(times - 2 * error > 1 for times, error in pairs)

    seeds = sorted({seed for seed, _ in rows})
    return [all(ahead(seed, keep) for keep in keeps) for seed in seeds]


def _mean(rows: list[dict], loss: Callable[[dict], float]) -> float:
    return statistics.mean(loss(row) for row in rows)


def _by_seed(figures) -> str:
    """`24.51, 24.14`; nothing known is left out."""
    return ", ".join(figure for figure in figures if figure) or "–"


def _times(pair: Estimate) -> str:
    """`×1.127±0.015`."""
    return f"×{pair[0]:.3f}±{pair[1]:.3f}"


def _on(text: str) -> Callable[[dict], str]:
    return lambda row: f"{row['texts'][text]['perplexity']:.1f}" if text in row["texts"] else ""


def _pair(row: dict, ours: dict) -> Estimate:
    """Over the same windows of the text that the table is about."""
    return paired_ratio(row["window_losses"], ours["window_losses"])


def _pair_of_texts(row: dict, ours: dict) -> Estimate:
    """The geometric mean over the texts of a suite."""
    texts = [name for name in ours["texts"] if name != WHOLE]
    losses = [(row["texts"][name]["losses"], ours["texts"][name]["losses"]) for name in texts]
    return geometric_mean([paired_ratio(*both) for both in losses])


DOMAIN = (
    {
        "perplexity by seed": lambda row: f"{row['perplexity']:.2f}",
        "C4 by seed": _on("C4"),
    },
    lambda row: row["perplexity"],
    _pair,
)
"""Of one text: the figures of a row, by which of them rows are sorted, and how they are paired."""
GENERAL = (
    {
        "general_ratio by seed": lambda row: f"×{row['general_ratio']:.3f}",
        "WikiText-2 by seed": _on("WikiText-2"),
        "C4 by seed": _on("C4"),
        WHOLE: _on(WHOLE),
    },
    lambda row: row["general_ratio"],
    _pair_of_texts,
)
"""Of the texts of a suite, the same."""
