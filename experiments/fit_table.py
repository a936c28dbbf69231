"""One budget of bytes for tokens and blocks, beside either alone: a part of results/fit.md."""

from itertools import groupby

from markdown_table import table

WAYS = ("one budget", "channels and heads", "vocabulary")


def fit_table(results: list[dict]) -> list[str]:
    """A row for each model and share of its bytes, a column for what may be cut."""
    found: dict[tuple[str, float], dict[str, float]] = {}
    for result in results:
        if "error" in result:
            continue
        name, way, *share = result["name"].split(", ")
        for model in result["models"]:
            asked = float(share[0]) if share else model["target"]
            found.setdefault((name, asked), {})[way] = model["general_ratio"]
    rows = []
    for name, places in groupby(found, key=lambda place: place[0]):
        for place in sorted(places, key=lambda place: -place[1]):
            cells = [f"×{found[place][way]:.3f}" if way in found[place] else "–" for way in WAYS]
            rows.append([name, f"{place[1]:g}", *cells])
    return table(["general ratio", "of its bytes", *WAYS], rows)
