"""The contest of structures: a table of losses over seeds, one of times, and a chart of both."""

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from committed import read_committed
from comparison_rows import HERE
from markdown_table import table
from over_seeds import by_name, paired
from test_suite import on_test_suite

from disp_lab.reporting.canvas import COUNTED, OTHERS, PRUNED, name_lines, panels, save

ALONE = "scales alone: "
"""How the names of variants begin whose adapters are left out."""
TIMES = HERE.parent / "benchmarks" / "results" / "structures.json"
DEFAULT = "channels and heads"
"""What the others are paired with."""
WAYS = ("eager", "compiled", "llama.cpp")
ENGINES = {
    "channels": "llama.cpp; others with our file",
    "channels and heads": "llama.cpp; others with our file",
    "channels, heads and branches": "llama.cpp; others with our file",
}
"""What runs a structure; those that cut the stream need our file everywhere."""


def contest_tables(results: list[dict]) -> list[str]:
    """Losses on the development suite, which chose, and on the test suite; then times."""
    lines = []
    final = on_test_suite("contest", results, HERE / "results")
    for suite, measured in (("", results), (", test suite", final)):
        for alone in (False, True):
            found = {
                name.removeprefix(ALONE): sizes
                for name, sizes in by_name(measured).items()
                if name.startswith(ALONE) is alone
            }
            if found:
                title = "scales alone" if alone else "with adapters"
                lines += [*losses(found, title + suite), ""]
    return [*lines, *times()]


def structures() -> list[str]:
    """The block of docs/results.md."""
    results = read_committed(HERE / "results" / "contest.json")
    (tokens,) = {
        result["tokens_seen"] for result in results if not result["name"].startswith(ALONE)
    }
    note = (
        f"From {tokens / 1e3:.0f} k tokens of the [mix](../experiments/results/general.md), one "
        "run for all sizes; *scales alone* from fewer, without adapters. Means over seeds; a pair "
        "is of the same seed, with the standard error over three seeds and Student's t. "
        "[Every run](../experiments/results/contest.md)."
    )
    chart = "![Loss over the time of a prompt, compiled and in llama.cpp](structures.png)"
    return [chart, "", *contest_tables(results), note]


def rivals() -> list[str]:
    """The block of docs/results.md."""
    results = read_committed(HERE / "results" / "rivals.json")
    (tokens,) = {round(result["tokens_seen"], -3) for result in results}
    note = (
        f"From {tokens / 1e3:.0f} k tokens of the [mix](../experiments/results/general.md) for "
        "everybody, with what [five trials each](../experiments/results/rival-trials.md) chose for "
        "the others. DDP and GRASPrune learn each size by itself, ours and GISP all from one run; "
        "they learn masks and scales, as one of ours does. "
        "Means over as many seeds as the last column says; pairs are of the same seed, of three "
        "with their standard error and Student's t. [Every run](../experiments/results/rivals.md)."
    )
    return [*rival_tables(results), "", note]


ADAPTED = "the default"
"""The contest's, which the others are paired with."""


def rival_tables(results: list[dict]) -> list[str]:
    """Losses of the strongest others and of ours from as many tokens: on the test suite and, where
    all have chosen their settings, on the development suite."""
    lines = list[str]()
    for suite, found in beside_default("rivals", results):
        lines += [*losses(found, suite, ADAPTED), ""]
    return lines[:-1]


def beside_default(experiment: str, results: list[dict]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures of an experiment by name and those of the default, for each suite that measured
    both."""
    contest = read_committed(HERE / "results" / "contest.json")
    default = [one for one in contest if one["name"].startswith(f"{DEFAULT}, seed")]
    folder = HERE / "results"
    others, ours = (
        on_test_suite(experiment, results, folder),
        on_test_suite("contest", default, folder),
    )
    for suite, other, own in (
        ("test suite", others, ours),
        ("development suite", results, default),
    ):
        if other and own:
            yield suite, by_name(other) | {ADAPTED: by_name(own)[DEFAULT]}


def losses(found: dict[str, Any], title: str, beside: str = DEFAULT) -> list[str]:
    """A row a structure, the least loss first: means over seeds, and pairs with one of them, which
    also say the order, since not all may have the same seeds.

    Args:
        beside: the one that the others are paired with.
    """
    keeps = sorted(found[beside], reverse=True)
    pairs = {
        name: [paired(sizes.get(keep, {}), found[beside][keep]) for keep in keeps]
        for name, sizes in found.items()
    }

    def order(name: str) -> float:
        return statistics.fmean(math.log(pair.ratio) for pair in pairs[name] if pair)

    rows = []
    for name in sorted((name for name in found if any(pairs[name])), key=order):
        sizes = found[name]
        cells = [
            f"×{statistics.fmean(sizes[keep].values()):.3f}" if keep in sizes else "–"
            for keep in keeps
        ]
        cells += ["–" if name == beside or not pair else pair.said for pair in pairs[name]]
        rows.append([name, *cells, str(len(sizes[keeps[0]]))])
    columns = [f"general ratio, {title}", *(f"keep {keep:g}" for keep in keeps)]
    columns += [*(f"times {beside}, {keep:g}" for keep in keeps), "seeds"]
    return table(columns, rows)


def times() -> list[str]:
    """A row for each structure: how many times as fast as the original a prompt and a token are."""
    told = read_committed(TIMES)
    keeps = sorted({row["keep"] for row in told["rows"]}, reverse=True)
    found = {(row["structure"], row["in"], row["keep"]): row for row in told["rows"]}
    sizes = ", ".join(f"{keep:g}" for keep in keeps)
    rows = []
    for name in dict.fromkeys(row["structure"] for row in told["rows"]):
        cells = []
        for phase in ("prefill", "decode"):
            for way in WAYS:
                of_way = [found.get((name, way, keep)) for keep in keeps]
                figures = [f"{one[phase][0]:.2f}" for one in of_way if one]
                cells.append(f"×{', '.join(figures)}" if figures else "–")
        rows.append([name, *cells, ENGINES.get(name, "with our file")])
    columns = ["times as fast", *(f"prompt, {way}" for way in WAYS)]
    columns += [*(f"token, {way}" for way in WAYS), "runs in"]
    hardware = told["hardware"]
    note = (
        f"At keep {sizes}, a prompt of 512 tokens and a token after them, each in turn with the "
        f"original, medians of {told['rounds']} rounds on {hardware['cpu']}, "
        f"{hardware['threads']} threads."
    )
    return [*table(columns, rows), "", note]


SHOWN = {
    "five sites, chunks of 32, least cut of a tenth": "five sites, chunks",
    "five sites, single dimensions": "five sites, dimensions",
}
"""Shorter names beside the panels."""
DRAWN = ("compiled", "llama.cpp")
"""Ways of running that the chart has, a panel each."""


def draw_structures(path: Path) -> None:
    """Loss against the time of a prompt: a line for each structure through its sizes."""
    from matplotlib.ticker import FormatStrFormatter

    found = by_name(read_committed(HERE / "results" / "contest.json"))
    told = read_committed(TIMES)["rows"]
    height, value = 3.6 * len(DRAWN), "times the original's perplexity"
    figure, every = panels(7.4, height, value, len(DRAWN))
    for axes, way in zip(every, DRAWN, strict=True):
        colors = iter((COUNTED, *OTHERS))
        ends = []
        for name in sorted({row["structure"] for row in told if row["in"] == way}):
            color = PRUNED if name == DEFAULT else next(colors)
            points = sorted(
                (row["prefill"][0], statistics.fmean(found[name][row["keep"]].values()))
                for row in told
                if (row["structure"], row["in"]) == (name, way)
            )
            axes.plot(
                *zip(*points, strict=True), color=color, marker="o",
                linewidth=2.4 if name == DEFAULT else 1.4,
            )  # fmt: skip
            ends.append((*points[-1], SHOWN.get(name, name), color))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FormatStrFormatter("×%g"))
        axes.yaxis.set_minor_formatter(FormatStrFormatter("×%g"))
        axes.set_xlabel(f"times as fast, a prompt of 512 tokens, {way}")
        name_lines(axes, ends)
    save(figure, path)
