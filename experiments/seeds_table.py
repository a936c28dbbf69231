"""Methods over several seeds, each beside ours of the same seed: a part of docs/reproduce.md."""

import statistics

from disp_llm.evaluation.paired import paired_ratio

OURS = "domain"
"""The method that the others are paired with."""


def seeds_table(results: list[dict]) -> list[str]:
    """A row for each method and size: perplexities by seed, and how many times ours they are."""
    rows = [
        row | {"seed": row["provenance"]["seed"]}
        for result in results
        for row in result["rows"]
        if row["error"] is None
    ]
    columns = "method | keep | perplexity by seed | C4 by seed | times ours of that seed | tokens"
    lines = [f"| {columns} |", "|---|---:|---|---|---|---:|"]
    by_place: dict[tuple[str, float], list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        by_place.setdefault((row["method"], row["keep_asked"]), []).append(row)
    sizes = sorted({keep for _, keep in by_place}, reverse=True)
    for keep in sizes:
        of_size = {method: found for (method, size), found in by_place.items() if size == keep}
        ours = {row["seed"]: row for row in of_size[OURS]}
        for method, found in sorted(of_size.items(), key=lambda item: _mean(item[1])):
            others = [] if method == OURS else [_times(row, ours[row["seed"]]) for row in found]
            cells = [
                f"`{method}`",
                f"{keep:g}",
                " / ".join(f"{row['perplexity']:.2f}" for row in found),
                " / ".join(f"{row['texts']['C4']['perplexity']:.1f}" for row in found),
                " / ".join(others) or "–",
                f"{found[0]['tokens_seen']:,}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(rows: list[dict]) -> float:
    return statistics.mean(row["perplexity"] for row in rows)


def _times(row: dict, ours: dict) -> str:
    """`×1.127 ± 0.015`, over the same windows."""
    ratio, error = paired_ratio(row["window_losses"], ours["window_losses"])
    return f"×{ratio:.3f} ± {error:.3f}"
