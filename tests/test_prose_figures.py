"""Every figure in the documents can be traced: it stands in a committed result, or the paragraph or
table names where it comes from.

Figures are perplexities and what else has decimals from 10 on, whole numbers in bold letters,
speeds and ratios (×1.23), percentages with decimals, and whatever has a ±. What may vouch for them:
a benchmark, a command that prints them; or a result file or another page, which has to hold each.
What `make tables` writes is held against the results by `tables.py --check`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "experiment-log.md"),
]
RESULTS = [
    *(ROOT / "experiments" / "results").glob("*.json"),
    *(ROOT / "experiments" / "baselines").glob("*.json"),
    *(ROOT / "benchmarks" / "results").glob("*.json"),
]
OTHERS = {"experiment-log.md": (ROOT / "docs" / "experiment-log.md").read_text()}
"""The page that vouches for what it holds."""

UNITS = r"(?:[KMGT]i?B|[kMB]\b|[PT]?FLOPs?|min|hours?|s\b|ms\b|MB|tokens)"
"""What follows a number that is no perplexity: sizes and times."""

FIGURE = re.compile(
    rf"""×\s?(?P<times>\d[\d,]*\.\d+)
    |(?P<share>\d+\.\d+)\s?%
    |(?P<spread>\d[\d,]*\.\d+)\ ±
    |\*\*(?P<bold>\d+)\*\*
    |(?<![\d.,×-])(?P<plain>\d[\d,]*\d\.\d{{1,2}})(?!\d|\.\d|\s?{UNITS}|-)""",
    re.VERBOSE,
)

FILES = re.compile(r"(?:results|baselines)/[\w-]+\.json")
"""Result files, as blocks name them."""

GENERATED = re.compile(r"(?s)<!-- (\w+) -->.*?<!-- /\1 -->")
VOUCHES = re.compile(
    r"baselines/[\w-]+\.toml|benchmarks/\w+\.(py|sh)"
    r"|(?:`|^)(?:disp-llm|make) [a-z]|arXiv \d{4}\.\d{5}",
    re.MULTILINE,
)
"""Benchmarks, commands, and papers, whose figures are said to be theirs."""

NOT_PROSE = re.compile(
    r"arXiv:? ?\S+|\]\([^)]*\)|`[^`]*`|\d+\.\d+\.\d+\S*|[A-Za-z]\w*-\d+\.\d+\S*|first \d+\.\d+ %"
)
"""What has numbers that are no figures: papers, addresses, code, versions, names of models, and how
much of a text is read."""


Measured = dict[str, list[float]]
"""The results of each kind of figure."""

KEYS = {
    "times": r"ratio|speedup",
    "share": r"^(acc|acc_norm|average|kept|keep|keep_total)$",
    "spread": r"ratio|speedup|perplexity|^dense$",
    "plain": r"perplexity|^dense$",
    "bold": r"perplexity|^dense$",
}
"""How a result is called in the files that may be a figure of each kind."""


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a JSON object with their keys."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


@pytest.fixture(scope="module")
def measured() -> Measured:
    found = [pair for path in RESULTS for pair in numbers(json.loads(path.read_text()))]
    return {
        kind: [number for key, number in found if re.search(pattern, key)]
        for kind, pattern in KEYS.items()
    }


@pytest.fixture(scope="module")
def by_file() -> dict[str, list[float]]:
    """The numbers of each result file, by its last two parts."""
    return {
        "/".join(path.parts[-2:]): [n for _, n in numbers(json.loads(path.read_text()))]
        for path in RESULTS
    }


def blocks(text: str) -> list[str]:
    """Paragraphs; tables with those beside them, and fenced blocks with their empty lines."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    found: list[str] = []
    for before, part in zip(["", *parts], parts, strict=False):
        beside_table = "|" in (before[:1], part[:1]) and "#" not in (before[:1], part[:1])
        if found and (beside_table or found[-1].count("```") % 2):
            found[-1] += f"\n\n{part}"
        else:
            found.append(part)
    return found


def figures(block: str) -> list[tuple[str, str]]:
    """The figures of a block: the kind of each, and how it is written."""
    prose = NOT_PROSE.sub(" ", block)
    return [(kind, found[kind]) for found in FIGURE.finditer(prose) if (kind := found.lastgroup)]


def is_measured(kind: str, figure: str, measured: Measured) -> bool:
    """Whether a result rounds to it."""
    decimals = len(figure.partition(".")[2])
    shown, half = float(figure.replace(",", "")), 0.5001 * 10**-decimals
    scale = 100 if kind == "share" else 1
    return any(abs(scale * one - shown) <= half for one in measured[kind])


def stands_in(figure: str, results: list[float]) -> bool:
    """Whether a result rounds to it, as it is, in per cent, in millions, or as what it is over."""
    decimals = len(figure.partition(".")[2])
    shown, half = float(figure.replace(",", "")), 0.5001 * 10**-decimals
    ways = ([one, 100 * one, one / 1e6, 1 / one if one else 0.0] for one in results)
    return any(abs(way - shown) <= half for of_one in ways for way in of_one)


def untraced(
    text: str, measured: Measured, others: dict[str, str], by_file: dict[str, list[float]]
) -> list[tuple[str, str]]:
    """Figures that nothing vouches for, each with the beginning of its block.

    Args:
        others: pages that vouch for what they hold, by name.
        by_file: numbers of result files, which vouch for what they hold.
    """
    found = []
    for block in blocks(text):
        if VOUCHES.search(block):
            continue
        pages = [page for name, page in others.items() if name in block]
        files = FILES.findall(block)
        results = [number for name in files for number in by_file[name]]
        found += [
            (figure, block[:60])
            for kind, figure in figures(block)
            if not (stands_in(figure, results) if files else is_measured(kind, figure, measured))
            and not any(re.search(rf"(?<![\d.]){figure}(?!\d)", page) for page in pages)
        ]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_can_be_traced(page, measured, by_file):
    found = untraced(GENERATED.sub("", page.read_text()), measured, OTHERS, by_file)
    assert not found, "name the result file, the benchmark, the command or the log beside them"


@pytest.fixture
def few() -> Measured:
    """Results of one small table."""
    return {
        "times": [1.257, 3.2], "share": [0.8421], "spread": [1.257, 54.929], "plain": [54.929],
        "bold": [54.929],
    }  # fmt: skip


HEADLINE = {"results/headline.json": [61.65, 0.8421, 163_500_000], "baselines/x.json": [71.7]}


LOG = "- it was 41.27, and ×2.5 in the end"


@pytest.mark.parametrize(
    "text",
    [
        "The perplexity is 54.9, or 54.93 ± 7.54, and ×1.26 as fast; **55** of 84.2 %.",
        "It is 61.7, 84.2 %, 163.5 and ×1.19 ([file](../experiments/results/headline.json)).",
        "It is 71.7.\n\n| a |\n|---|\n| 71.7 |\n\nFrom [them](../experiments/baselines/x.json).",
        "`disp-llm bench run/model` says ×9.87.",
        "```\ndisp-llm eval run  # perplexity 61.65\n\n  61.7 \n```",
        "It was 41.27 and ×2.5 ([log](experiment-log.md)).",
        "The paper (arXiv 2410.11988) has 39.87.",
        "Phi-1.5 and Qwen 3.5 on torch 2.13.0, keep 0.757, 20.8 GiB, 12.3 k tokens, 5.5 times.",
        "The first 8.9 % of `12.3.raw`.",
    ],
)
def test_figures_that_something_vouches_for(text, few):
    assert untraced(text, few, {"experiment-log.md": LOG}, HEADLINE) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("The perplexity is 54.8 and 54.9.", ["54.8"]),
        ("It is **53**, ×1.31 as fast, 84.3 % of 1,234.5 ± 2.", ["53", "1.31", "84.3", "1,234.5"]),
        ("×54.9 as fast", ["54.9"]),  # is a perplexity, and no speed
        ("Make it 61.7, as disp-llm does.", ["61.7"]),
        ("It is 61.7.\n\n[Results](../experiments/results/headline.json).", ["61.7"]),
        ("It is 61.8 and 54.9 ([file](../experiments/results/headline.json)).", ["61.8", "54.9"]),
        ("61.7 and ×1.26 ([file](../experiments/baselines/x.json)).", ["61.7", "1.26"]),
        ("| a |\n|---|\n| 71.7 |\n\n## From\n\n`make tables`", ["71.7"]),
        ("It was 41.2 and 1.27 ± 3 ([log](experiment-log.md)).", ["41.2", "1.27"]),
        ("It was 41.27 once.", ["41.27"]),  # in the log, which is not named
    ],
)
def test_figures_that_nothing_vouches_for(text, missing, few):
    found = untraced(text, few, {"experiment-log.md": LOG}, HEADLINE)
    assert [figure for figure, _ in found] == missing
