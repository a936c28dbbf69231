"""F1 of taggers on WNUT-17: the table and the picture of docs/results.md.

Every number comes from `benchmarks/results/specialists.json`. Differences between two models are
taken sentence by sentence: both are scored on the same bootstrap samples of the test set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from committed import read_committed
from comparison_rows import HERE
from markdown_table import table

from disp_lab.reporting.canvas import GREY, OTHERS, PRUNED, panels, save

RESULTS = HERE.parent / "benchmarks" / "results" / "specialists.json"
TIMES = RESULTS.with_name("tagger_time.json")

TITLES = {
    "dense": "original, an epoch",
    "dense, two epochs": "original, two epochs",
    "plain": "original, an epoch, as tagged text",
    "task 0.7": "**by the task's loss**, keep 0.7",
    "task 0.5": "**by the task's loss**, keep 0.5",
    "task 0.3": "**by the task's loss**, keep 0.3",
    "task 0.5, int8": "**by the task's loss**, keep 0.5, in int8",
    "one pass 0.5": "masks and all weights in one pass, keep 0.5",
    "general 0.5": "pruned on WikiText-2 first, keep 0.5",
    "flap 0.5": "FLAP, keep 0.5",
    "flap 0.3": "FLAP, keep 0.3",
    "blocks 0.5": "every second block",
    "linear": "linear tagger over words and shapes",
}
"""Rows in their order."""

BASIS = "dense, two epochs"
"""What others are held against: the original, trained for as long."""

ORIGINALS = (BASIS, "dense", "plain")
"""Those that nothing was pruned from."""

SAMPLES = 2000


@dataclass(frozen=True)
class Tagger:
    """One model, as it was scored."""

    row: dict

    @cached_property
    def counts(self) -> np.ndarray:
        """(sentences, 3): spans that are right and found, that were found, that are right."""
        return np.array([one.split("/") for one in self.row["counts"].split()], dtype=float)

    @property
    def megabytes(self) -> float:
        """Of the weights as they are stored, in bfloat16 but for int8, embedding included."""
        return self.row.get("bytes", self.row["parameters"] * 2) / 1e6


def f1(sums: np.ndarray) -> np.ndarray:
    """(…, 3) -> (…)."""
    return 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)


def share_of(ones: list[Tagger], others: list[Tagger]) -> tuple[float, float]:
    """Mean F1 of a model over that of another, one of each a seed, and its standard deviation over
    bootstrap samples of the sentences, the same for all."""
    count = len(ones[0].counts)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), SAMPLES)

    def ratio(sampled: np.ndarray) -> np.ndarray:
        upper, lower = (sum(f1(sampled @ one.counts) for one in of) for of in (ones, others))
        return upper / lower

    return float(ratio(np.ones(count))), float(ratio(weights.astype(float)).std())


def taggers(seed: int = 0) -> dict[str, Tagger]:
    """What has been scored with a seed, by name."""
    rows = read_committed(RESULTS)
    found = {row["name"]: Tagger(row) for row in rows if row["seed"] == seed}
    return {name: found[name] for name in TITLES if name in found}


def scored(found: dict[str, Tagger], name: str) -> tuple[str, str]:
    """F1 of a tagger, and its share of the original's; empty where it was not made."""
    if name not in found:
        return "", ""
    row = found[name].row
    share, error = share_of([found[name]], [found[BASIS]])
    written = "" if name == BASIS else f"{share:.1%} ± {error:.1%}"
    return f"{100 * row['f1']:.1f} ± {100 * row['f1_stderr']:.1f}", written


def specialists_table() -> list[str]:
    """Between the markers of docs/results.md."""
    found, again = taggers(), taggers(seed=1)
    rows = []
    for name in [name for name in TITLES if name in found or name in again]:
        one = found.get(name) or again[name]
        size = "–" if name == "linear" else f"{one.megabytes:.0f}"
        cells = [TITLES[name], size, *scored(found, name), *scored(again, name)]
        rows.append(cells)
    hardware = found[BASIS].row["hardware"]
    columns = ("model", "MB", "F1", "share of the original's", "F1, second seed", "share")
    lines = [
        *table(columns, rows),
        "",
        "Exact spans with their labels; ± over bootstrap samples of the sentences."
        f"{_of_both(found, again)} MB are weights as stored, embedding included. "
        f"{hardware['cpu']}. "
        "[Precision, recall, seconds](../benchmarks/results/specialists.json).",
    ]
    return ["![F1 over size, first seed, and over speed, second seed](specialists.png)", "", *lines]


def _of_both(found: dict[str, Tagger], again: dict[str, Tagger]) -> str:
    """What the seeds say together."""
    shares = [
        f"{TITLES[name].replace('**', '')}, {share:.1%} ± {error:.1%}"
        for name in found
        if name in again and name not in ORIGINALS
        for share, error in [
            share_of([found[name], again[name]], [found[BASIS], again[BASIS]]),
        ]
    ]
    return (
        f" Mean of both seeds over that of the {TITLES[BASIS].replace(', ', ' after ')}: "
        f"{'; '.join(shares)}."
    )


def draw_specialists(path: Path) -> None:
    """F1 against megabytes, ours as a line, and against time."""
    figure, (sizes, times) = panels(7.4, 6.8, "F1 on WNUT-17 test, %", 2)
    _draw_sizes(sizes)
    _draw_times(times, read_committed(TIMES))
    save(figure, path)


def apart(heights: Sequence[float], factor: float) -> list[float]:
    """The heights of names, moved upwards where one would lie upon the next below it."""
    placed, least = dict[int, float](), 0.0
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        placed[index] = max(heights[index], least)
        least = placed[index] * factor
    return [placed[index] for index in range(len(heights))]


def _color_of(name: str) -> str:
    own = name.startswith(("task", "one pass"))
    return PRUNED if own else GREY if name in ORIGINALS else OTHERS[0]


SHORT = {
    "dense, two epochs": "original, two epochs",
    "one pass 0.5": "one pass, keep 0.5",
    "flap 0.5": "FLAP, keep 0.5",
    "task 0.5, int8": "keep 0.5, in int8",
}
"""Names in the panel of times; of the others their size."""


def _draw_times(axes: Any, timed: dict) -> None:
    found = taggers(timed["seed"])
    speeds = {row["name"]: 1 / row["share"] for row in timed["rows"]}
    for left in (True, False):  # on which side of its point a name stands
        names = [name for name, speed in speeds.items() if (speed < 1.01) is left]
        heights = apart([100 * found[name].row["f1"] for name in names], 1.03)
        for name, height in zip(names, heights, strict=True):
            score, error = (100 * found[name].row[key] for key in ("f1", "f1_stderr"))
            axes.errorbar(
                speeds[name], score, error, marker="o", markersize=5, color=_color_of(name),
                capsize=2, linewidth=1,
            )  # fmt: skip
            axes.annotate(
                SHORT.get(name, name.replace("task", "keep")), (speeds[name], height),
                xytext=(-7 if left else 7, 0), va="center", ha="right" if left else "left",
                textcoords="offset points", fontsize=8, color=_color_of(name),
            )  # fmt: skip
    axes.set_xlim(0.6 * min(speeds.values()), 1.25 * max(speeds.values()))
    axes.set_xlabel("times as fast, a sentence (second seed)")


def _draw_sizes(axes: Any) -> None:
    found = {name: one for name, one in taggers().items() if "int8" not in name}
    ours = [one for name, one in found.items() if name.startswith("task")]
    line = sorted([*ours, found[BASIS]], key=lambda one: one.megabytes)
    axes.plot([one.megabytes for one in line], [100 * one.row["f1"] for one in line], color=PRUNED)
    scores = {name: 100 * one.row["f1"] for name, one in found.items()}
    sizes = {name: round(one.megabytes) for name, one in found.items()}
    keeps: dict[int, str] = {}
    for size in dict.fromkeys(sizes.values()):  # the names of one size stand one above the other
        names = [name for name in found if sizes[name] == size]
        heights = apart([scores[name] - 1.2 for name in names], 1.05)
        for name, height in zip(names, heights, strict=True):
            color = _color_of(name)
            axes.errorbar(
                size, scores[name], 100 * found[name].row["f1_stderr"], marker="o", markersize=5,
                color=color, capsize=2, linewidth=1,
            )  # fmt: skip
            title, _, kept = TITLES[name].replace("**", "").partition(", keep ")
            title = title.removeprefix("pruned on ")  # else it reaches the next name
            before = kept == "0.3"  # behind it stands the half
            axes.annotate(
                title, (size, height), xytext=(-7 if before else 7, 0), va="center",
                ha="right" if before else "left",
                textcoords="offset points", fontsize=8, color=color,
            )  # fmt: skip
            keeps |= {size: f"keep {kept}"} if kept else {}
    for size, kept in keeps.items():
        axes.annotate(
            kept, (size, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom",
            fontsize=8,
        )  # fmt: skip
    axes.set_xlim(right=1.6 * max(sizes.values()))
    axes.set_xlabel("weights in bfloat16, MB (first seed)")
