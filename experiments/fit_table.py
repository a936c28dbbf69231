"""One budget of bytes for tokens and blocks, beside either alone: a part of results/fit.md and of
docs/results.md."""

from itertools import groupby
from pathlib import Path

from committed import read_committed
from markdown_table import table

from disp_lab.reporting.canvas import COUNTED, PRUNED, canvas, save

RESULTS = Path(__file__).parent / "results" / "fit.json"

WAYS = ("one budget", "channels and heads", "vocabulary")

Made = dict[str, dict]
"""A model that was made, by what was cut."""


def made_of(results: list[dict]) -> dict[tuple[str, float], Made]:
    """What was made of each model at each share of its bytes."""
    found: dict[tuple[str, float], Made] = {}
    for result in results:
        if "error" in result:
            continue
        name, way, *share = result["name"].split(", ")
        for model in result["models"]:
            asked = float(share[0]) if share else model["target"]
            found.setdefault((name, asked), {})[way] = model
    return found


def fit_table(results: list[dict]) -> list[str]:
    """A row for each model and share of its bytes, a column for what may be cut."""
    found = made_of(results)
    rows = []
    for name, places in groupby(found, key=lambda place: place[0]):
        for place in sorted(places, key=lambda place: -place[1]):
            cells = [
                f"×{found[place][way]['general_ratio']:.3f}" if way in found[place] else "–"
                for way in WAYS
            ]
            rows.append([name, f"{place[1]:g}", *cells])
    return table(["general ratio", "of its bytes", *WAYS], rows)


def fit_block() -> list[str]:
    """What stands in docs/results.md."""
    picture = "![Megabytes of blocks and of vocabulary, before and after](fit.png)"
    return [picture, "", *fit_table(read_committed(RESULTS))]


def draw_fit(path: Path) -> None:
    """Where the bytes are, before and after: a bar for each model, its general ratio at the end."""
    results = read_committed(RESULTS)
    originals = {result["name"].split(", ")[0]: result["original"] for result in results}
    bars: list[tuple[str, dict, str]] = []
    for name, found in groupby(made_of(results).items(), key=lambda item: item[0][0]):
        bars.append((f"{name}, original", originals[name], ""))
        for (_, share), made in sorted(found, key=lambda item: -item[0][1]):
            bars += [
                (f"{share:g}, {way}", made[way], f" ×{made[way]['general_ratio']:.2f}")
                for way in WAYS
                if way in made
            ]
    figure = canvas(7.4, 0.6 + 0.32 * len(bars))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for place, (_, model, ratio) in enumerate(bars):
        size = model["bytes"] / model["parameters"] / 1e6
        blocks = model["block_parameters"] * size
        rest = model["parameters"] * size - blocks
        of_blocks = axes.barh(place, blocks, color=PRUNED)
        of_tokens = axes.barh(place, rest, left=blocks, color=COUNTED)
        axes.text(blocks + rest, place, ratio, va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("MB; × times the original's perplexity")
    axes.legend((of_blocks, of_tokens), ("blocks", "vocabulary"), frameon=False, loc="lower right")
    save(figure, path)
