"""Figures of quality, time and memory stand in blocks that are generated from results.

`experiments/tables.py` makes the blocks, notes included; what differs from them was changed by
hand. Outside of them no text has a number with a decimal point, a percent or times sign, or a unit
of time or memory, but for the phrases below. Nor has the text that the generator is given.
"""

import ast
import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
LOG = "experiment-log.md"
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != LOG),
]

COUNTED = "one|two|three|four|five|six|seven|eight|nine|ten"
UNITS = r"[kKMGT]i?B|ms|s|min|(?:milli)?seconds?|minutes?|hours?|points?|times"
FIGURE = re.compile(
    rf"""\d[\d,]*\.\d+ | \.\d | \d\s?(?:%|‰|×|x\b) | [×x]\s?\d | ±\s?\d | \*\*\d[\d,]*\*\*
    | \d\s?(?:{UNITS})\b | \b(?:{COUNTED})\ (?:seconds?|minutes?|hours?|points?)\b
    | \ban?\ (?:minute|hour)\b
    | \d\ (?:to\ \d+\ )?per\ cent | perplexit(?:y|ies)\b[^.,;|\n]{{0,12}}\b\d""",
    re.VERBOSE,
)
"""What may be measured."""

ALLOWED = {
    "Apache-2.0": "licence",
    "arXiv 2305.17888": "paper",
    "arXiv 2410.11988": "paper",
    "Python 3.11": "version",
    "transformers 5.24": "version",
    "transformers 5.15 to 5.24": "version",
    "proven; 5.15 lacks": "version",
    "vLLM 0.32": "version",
    "version 0.32": "version",
    "llm-compressor 0.14": "version",
    "Qwen 3.5": "name of a model",
    "Ernie 4.5": "name of a model",
    "A lost process ends all after 30 minutes": "default of torch",
}
"""Phrases of the documents with numbers that nobody measures."""

TYPED = {
    **ALLOWED,
    "8.9 %": "which part of a text is read",
    "keep 1.0": "setting",
    "stores 0.5625": "format: four bits of index for four weights of which two are stored",
    "the index bits (0.5625)": "the same",
    "Equal time: 55 seconds": "setting",
}
"""The same of what the generator is given."""

OF_A_SIZE = re.compile(r"(?:keep|task|pass|general|flap|blocks) 0\.\d\b|^0\.\d$")
"""Sizes in names of results."""

FENCE = re.compile(r"(?ms)^ *```.*?^ *```")
CODE = re.compile(r"`[^`\n]*`|\]\([^)\n]*\)|(?<=<)https?:[^>]*(?=>)")
"""Code in a line, and addresses."""


def without_code(text: str) -> str:
    """The text with blanks for code and addresses; comments of fenced code stay, and so does what
    has the marks of code but no letter."""

    def blank(found: re.Match) -> str:
        return re.sub(r"[^\n]", " ", found[0]) if re.search("[A-Za-z]", found[0]) else found[0]

    def comments(found: re.Match) -> str:
        return re.sub(r"(?m)^(?:(?! # ).)*", blank, found[0])

    return CODE.sub(blank, FENCE.sub(comments, text))


def figures(text: str, allowed: dict[str, str]) -> list[str]:
    """What may be measured in the text, each with its line."""
    for phrase in sorted(allowed, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.]){re.escape(phrase)}(?!\w|\.\d|\s?[%×])", " - ", text)
    return [
        f"{found[0]}: {line.strip()[:80]}"
        for line in text.splitlines()
        for found in FIGURE.finditer(line)
    ]


@dataclass(frozen=True)
class Documents:
    """What the generator makes of them."""

    tables: ModuleType
    whole: dict[Path, str]
    blocks: dict[Path, dict[str, list[str]]]

    def problems(self, page: Path, text: str) -> list[str]:
        """What is wrong with a text of that page."""
        if page in self.whole:
            return [] if text == self.whole[page] else ["not as it is generated"]
        made = self.blocks.get(page, {})
        try:
            filled, prose = self.tables.filled(text, made), self.tables.prose(text, made)
        except ValueError as error:
            return [str(error)]
        stale = [] if filled == text else ["a block is not as it is generated"]
        if prose.count("<!--") != 2 * len(made) or "<div" in prose:
            stale.append("a block that nothing generates")
        return stale + figures(without_code(prose), ALLOWED)

    def prose_of(self, page: Path) -> list[tuple[int, int]]:
        """Spans of a page that lie outside of blocks, code and addresses."""
        text = page.read_text()
        hidden = [
            (text.index(f"<!-- {name} -->"), text.index(f"<!-- /{name} -->") + len(name) + 9)
            for name in self.blocks.get(page, {})
        ]
        hidden += [found.span() for pattern in (FENCE, CODE) for found in pattern.finditer(text)]
        spans, at = [], 0
        for start, end in [*sorted(hidden), (len(text), len(text))]:
            spans += [(at, start)] * (at < start)
            at = max(at, end)
        return spans


@pytest.fixture(scope="module")
def documents() -> Iterator[Documents]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        import tables

        yield Documents(tables, tables.whole_pages(), tables.blocks())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_stand_in_generated_blocks_alone(page, documents):
    problems = documents.problems(page, page.read_text())
    assert not problems, "run `make tables`, or leave the figure to a block"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_ends_in_the_line_in_which_it_begins(page):
    """Else what follows it would be taken for code."""
    text = FENCE.sub("", page.read_text())
    assert not [line for line in text.splitlines() if line.count("`") % 2]


def typed() -> Iterator[tuple[str, str]]:
    """Strings that the generator prints, and where each stands: those of its modules but for
    docstrings, and those of the settings of the comparisons."""
    told = tomllib.loads((EXPERIMENTS / "baselines" / "tables.toml").read_text())
    yield from (("tables.toml", text) for text in strings(told))
    for module in dict.fromkeys(["tables", *imported("tables")]):
        nodes = list(ast.walk(ast.parse((EXPERIMENTS / f"{module}.py").read_text())))
        formats = [node.format_spec for node in nodes if isinstance(node, ast.FormattedValue)]
        silent = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        silent |= {id(part) for one in formats if one for part in ast.walk(one)}
        for node in nodes:
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and id(node) not in silent:
                yield f"{module}.py, line {node.lineno}", node.value


def strings(told: Any, key: str = "") -> Iterator[str]:
    """All of a TOML file but for commands and names of results."""
    if isinstance(told, dict):
        for name, part in told.items():
            yield from strings(part, name)
    elif isinstance(told, list):
        for part in told:
            yield from strings(part, key)
    elif isinstance(told, str) and key not in ("file", "flags", "experiment", "variant"):
        yield told


def imported(module: str) -> Iterator[str]:
    """Modules of `experiments/` that one imports, and those that they import."""
    for node in ast.walk(ast.parse((EXPERIMENTS / f"{module}.py").read_text())):
        name = node.module if isinstance(node, ast.ImportFrom) else None
        if name and (EXPERIMENTS / f"{name}.py").exists():
            yield name
            yield from imported(name)


def test_the_generator_has_every_figure_from_a_result():
    found = [
        f"{place}: {figure}"
        for place, text in typed()
        for figure in figures(OF_A_SIZE.sub("-", without_code(text)), TYPED)
    ]
    assert len(list(typed())) > 300
    assert not found, "compute it from a result"


NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SEEDS = 100
"""Of each kind of change."""


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_number_of_a_block_changes_unnoticed(seed, documents):
    draw = random.Random(seed)
    made = documents.whole.keys() | documents.blocks.keys()
    page = draw.choice([page for page in PAGES if page in made])
    text = page.read_text()
    spans = generated(page, text, documents)
    found = draw.choice([one for span in spans for one in NUMBER.finditer(text, *span)])
    last = int(text[found.end() - 1])
    changed = last + (1 if last == 0 else -1 if last == 9 else draw.choice((1, -1)))
    assert documents.problems(page, text) == []
    at = found.end()
    assert documents.problems(page, f"{text[: at - 1]}{changed}{text[at:]}")


def generated(page: Path, text: str, documents: Documents) -> list[tuple[int, int]]:
    """The spans of a page that are generated."""
    if page in documents.whole:
        return [(0, len(text))]
    marks = [(f"<!-- {name} -->", f"<!-- /{name} -->") for name in documents.blocks[page]]
    return [(text.index(start), text.index(end)) for start, end in marks]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_figure_comes_into_prose_unnoticed(seed, documents):
    draw = random.Random(seed)
    page = draw.choice([page for page in PAGES if page not in documents.whole])
    text = page.read_text()
    gaps = [
        place
        for start, end in documents.prose_of(page)
        for place in range(start, end)
        if text[place] == " "
    ]
    value, whole = round(draw.uniform(0.01, 99), 2), draw.randrange(1, 200)
    figure = draw.choice(
        [
            f"{value}", f"{value:.2f}", f"{whole} %", f"{whole}%", f"{value} %", f"×{value:.2f}",
            f"x{value:.2f}", f"{value:.1f}x", f"×{whole}", f"{whole} ×", f"{whole}x", f"x{whole}",
        ]
    )  # fmt: skip
    place = draw.choice(gaps)
    assert documents.problems(page, text) == []
    assert documents.problems(page, f"{text[:place]} {figure}{text[place:]}")


def test_what_is_around_a_block_is_noticed(documents):
    """Its markers cannot go, come twice, or hide what nothing generates."""
    for page, made in documents.blocks.items():
        text = page.read_text()
        for name in made:
            start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
            block = text[text.index(start) : text.index(end) + len(end)]
            changes = [
                text.replace(start, ""),
                text.replace(end, ""),
                text.replace(start, "").replace(end, ""),
                text.replace(block, ""),
                text.replace(block, f"{block}\n{block}"),
                text.replace(block, block.replace(name, "other")),
                text.replace(end, f"A typed note.\n{end}"),
                text.replace(end, f"{end}\n<!-- own -->\n<!-- /own -->"),
            ]
            assert [bool(documents.problems(page, changed)) for changed in changes] == [True] * 8


@pytest.mark.parametrize(
    "figure",
    [
        "0.96", "1,234.5", "99 %", "99%", "×2", "2 ×", "x1.96", "1.96x", "51 ± 2", "**37**",
        "25 s", "22 min", "five minutes", "an hour", "3 GiB", "0.2 GB", "16 times", "five points",
        "`0.87`", "5 to 8 per cent", "perplexity of 51", "vLLM 0.33", "vLLM 0.325", "Qwen 3.5 %",
    ],
)  # fmt: skip
def test_what_is_a_figure(figure):
    assert figures(without_code(f"So it is {figure}, as told."), ALLOWED)


@pytest.mark.parametrize(
    "text",
    [
        "The vLLM 0.32 of `--keep 0.5`, [here](https://arxiv.org/abs/2410.11988).",
        "At half, 84 architectures, 150 steps, windows of 1,024, a million tokens, int4, 2:4.",
        "```\ndisp-llm prune m --keep 0.5  # to half\n```",
    ],
)
def test_what_is_no_figure(text):
    assert not figures(without_code(text), ALLOWED)


def test_a_comment_of_code_has_no_figure():
    assert figures(without_code("```\nmake demo  # in 4.5 hours\n```"), ALLOWED)
