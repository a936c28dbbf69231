"""Tables that set methods side by side: baselines/tables.md, docs/results.md and README.md."""

import statistics
import tomllib
from dataclasses import dataclass
from pathlib import Path

from committed import read_committed
from machines import Times, origin_of_rows

HERE = Path(__file__).parent
BASELINES = HERE / "baselines"
AS_USED = "tokens-12k.json"
"""The comparison of each method with the text that it is used with."""
SIZES = ("0.8", "0.7", "0.5")
"""The sizes that README.md compares."""
ENDS = (SIZES[0], SIZES[-1])
"""Those of tables with several figures of each."""
FIRST_TOKENS = 16 * 1023
"""Tokens of the first 16 windows of 1,024 that are predicted."""
WHOLE = "WikiText-2, whole"
"""The WikiText-2 test text in windows of 2,048, beside the first windows of the suite."""


def figure(model: dict) -> str:
    """A perplexity with its standard error."""
    return f"{model['perplexity']:.2f} ± {model['perplexity_stderr']:.2f}"


def ratio(model: dict) -> str:
    """A general ratio with its standard error."""
    return f"×{model['general_ratio']:.3f} ± {model['general_ratio_stderr']:.3f}"


def page_settings() -> dict:
    """The words around the comparisons, and what README.md takes from them."""
    return tomllib.loads((BASELINES / "tables.toml").read_text())


def compared(name: str) -> dict | None:
    """A committed comparison, if it has been run. Seconds that `tables.toml` says to be of another
    processor, of which an old row does not tell, are left out: a column of times is of one."""
    file = BASELINES / name
    if not file.exists():
        return None
    result = read_committed(file)
    (told,) = (one for one in page_settings()["comparison"] if one["file"] == name)
    elsewhere = told.get("seconds_elsewhere", [])
    for row in result["rows"]:
        row["seconds"] = None if row["method"] in elsewhere else row["seconds"]
    return result


@dataclass(frozen=True)
class Figure:
    """A figure of a row: of several seeds their mean."""

    mean: float
    error: float
    """Its standard error; of several seeds their mean."""
    ends: tuple[float, float] | None = None
    """The least and the largest, where there are several seeds."""

    @classmethod
    def of(cls, found: list[dict], name: str) -> "Figure | None":
        """Of the models of all seeds, those that have it."""
        values = [model[name] for model in found if name in model]
        if not values:
            return None
        error = statistics.mean(model[f"{name}_stderr"] for model in found if name in model)
        ends = (min(values), max(values)) if len(values) > 1 else None
        return cls(statistics.mean(values), error, ends)

    def said(self, digits: int) -> str:
        """`53.1`, or of several seeds `53.1 (52.0 to 54.8)`."""
        if self.ends is None:
            return f"{self.mean:.{digits}f}"
        low, high = self.ends
        return f"{self.mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


Figures = dict[str, Figure]
"""By size, keys as in `SIZES`."""


@dataclass(frozen=True)
class Row:
    """A method in the tables and the chart of README.md."""

    name: str
    tokens: tuple[int, int]
    """The fewest and the most that any of its sizes has read."""
    perplexity: Figures
    """Over the first 16 windows of the WikiText-2 test text."""
    texts: dict[str, Figures]
    """Over other texts, where that was measured."""
    general: Figures
    """The general ratio, where that was measured."""

    @property
    def plain_name(self) -> str:
        """The name without marks of Markdown."""
        return self.name.replace("*", "").replace("`", "")

    @property
    def tokens_said(self) -> str:
        """`89 k`, or of sizes that read more the smaller they are `997 k to 2.5 M`."""
        said = (f"{n / 1e3:.0f} k" if n < 1e6 else f"{n / 1e6:.1f} M" for n in self.tokens)
        return " to ".join(dict.fromkeys(said))

    @property
    def ours(self) -> bool:
        """Whether this package made it."""
        return "disp-llm" in self.name


def original_perplexity() -> float:
    """The original's, over the first windows of the WikiText-2 test text."""
    comparison = compared(AS_USED)
    assert comparison is not None
    return comparison["dense"]["perplexity"]


def domain_rows() -> list[Row]:
    """What learned from WikiText-2, in the order of perplexity at the smallest size."""
    rows = [_row(told) for told in page_settings()["domain"]["row"]]
    return sorted(rows, key=lambda row: row.perplexity[SIZES[-1]].mean)


def mix_rows(table: str) -> list[Row]:
    """The rows of a table of README.md on new documents of the mix, the least loss first."""
    rows = [_row(told) for told in page_settings()[table]["row"]]
    return sorted(rows, key=lambda row: row.general[SIZES[-1]].mean)


def _row(told: dict) -> Row:
    """A row from the experiment that `told` names: one of its variants, or several, of a size or of
    a seed each; or all rows of a method."""
    models = _models(told)
    # With what was read by the run that a recovery began with.
    read = [model["tokens_seen"] + told.get("tokens_before", 0) for model in models]
    seeds: dict[str, list[dict]] = {}
    for model in models:
        size = f"{model.get('keep_asked', round(model['keep'], 2)):g}"
        seeds.setdefault(size, []).append(model)

    def figures(name: str, text: str = "") -> Figures:
        """A figure of every size that has it, over a text if one is named."""
        told_by = {
            size: [model.get("texts", {}).get(text, {}) if text else model for model in found]
            for size, found in seeds.items()
        }
        by_size = {size: Figure.of(found, name) for size, found in told_by.items()}
        return {size: figure for size, figure in by_size.items() if figure is not None}

    texts = {text for model in models for text in model.get("texts", {})}
    return Row(
        name=told["name"],
        tokens=(min(read), max(read)),
        perplexity=figures("perplexity"),
        texts={text: figures("perplexity", text) for text in texts},
        general=figures("general_ratio"),
    )


def _models(told: dict) -> list[dict]:
    """The models of all seeds, each with the tokens that were read for it."""
    results = read_committed(HERE / "results" / f"{told['experiment']}.json")
    if "method" in told:
        return [row for result in results for row in _of_method(result, told["method"])]
    named = told["variant"] if isinstance(told["variant"], list) else [told["variant"]]
    return [
        model | {"tokens_seen": result["tokens_seen"] + result.get("tokens_before", 0)}
        for result in results
        if result["name"] in named
        for model in result["models"]
    ]


def _of_method(comparison: dict, method: str) -> list[dict]:
    return [row for row in rows_of(comparison) if row["method"] == method]


def rows_of(comparison: dict) -> list[dict]:
    """The rows of a comparison that have not failed, with all the texts that they were measured on.
    Where it measured on the whole WikiText-2 test text, that is one of them, and the first windows,
    which its suite has, stand in its place."""
    made = [row for row in comparison["rows"] if row["error"] is None]
    first = comparison["dense"]["tokens"] == FIRST_TOKENS
    return [_with_other_texts(row) if first else _with_whole(row) for row in made]


def _with_other_texts(row: dict) -> dict:
    return row | {"texts": row.get("texts", {}) | row.get("other_texts", {})}


def _with_whole(row: dict) -> dict:
    names = ("perplexity", "perplexity_stderr", "window_losses")
    first = row["texts"]["WikiText-2"] | {"window_losses": row["texts"]["WikiText-2"]["losses"]}
    texts = row["texts"] | {WHOLE: {name: row[name] for name in names}}
    return row | {"texts": texts} | {name: first[name] for name in names}


def general_table() -> list[str]:
    """How many times the original's perplexity each has, over texts that it did not learn from."""
    rows = mix_rows("general")
    sizes = sorted({size for row in rows for size in row.general}, reverse=True)
    columns = ["times the original's perplexity", *(f"keep {size}" for size in sizes)]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * len(sizes)]
    for row in rows:
        cells = [f"{row.general[size].mean:.2f}" for size in sizes]
        name = f"{row.name.partition(', ')[2]}, {row.tokens_said} tokens"
        lines.append(f"| {' | '.join([name, *cells])} |")
    return [*lines, "", page_settings()["general"]["note"].strip()]


def headline() -> list[str]:
    """The result of README.md: half of the model, beside the strongest others."""
    rows = {row.plain_name: row.perplexity["0.5"].mean for row in domain_rows()}
    ours, *others = rows.values()
    original = original_perplexity()
    said = ", ".join(f"{name} {value:.0f}" for name, value in list(rows.items())[1:4:2])
    assert ours < min(others)
    return [
        "**Half of SmolLM2-135M in five minutes: WikiText-2 perplexity "
        f"{ours:.0f}, original {original:.0f}, {said}.**"
    ]


def _ratio_said(row: Row, size: str) -> str:
    """`×1.37 ± 0.02`, or of several seeds `×1.38 (1.37 to 1.39)`."""
    if size not in row.general:
        return "–"
    ratio = row.general[size]
    return f"×{ratio.said(2)}" + ("" if ratio.ends else f" ± {ratio.error:.2f}")


def equal_table() -> list[str]:
    """Of docs/results.md: what each has lost on new documents of a mix, from as many tokens."""
    rows = mix_rows("equal")
    cells = [[_ratio_said(row, size) for size in ENDS] for row in rows]
    return _table("from as many tokens", "times the original's", rows, cells, "equal")


def domain_table() -> list[str]:
    """Of docs/results.md: equal tokens of WikiText-2, there and on texts that no row has read."""
    rows = domain_rows()
    cells = [_said(row.perplexity) for row in rows]
    return _table("perplexity", "WikiText-2", rows, cells, "domain")


def _table(
    title: str, figure: str, rows: list[Row], cells: list[list[str]], table: str
) -> list[str]:
    """Rows with the cells of one figure, then perplexities on the texts of the table's settings."""
    told = page_settings()[table]
    columns = [title, *(f"{name}, {size}" for name in (figure, *told["texts"]) for size in ENDS)]
    lines = [f"| {' | '.join([*columns, 'tokens'])} |", "|---|" + "---:|" * len(columns)]
    for row, of_row in zip(rows, cells, strict=True):
        others = [cell for name in told["texts"] for cell in _said(row.texts.get(name, {}))]
        lines.append(f"| {' | '.join([row.name, *of_row, *others, row.tokens_said])} |")
    return [*lines, "", told["note"].strip()]


def _said(found: Figures) -> list[str]:
    """A cell for each size."""
    return [found[size].said(1) if size in found else "–" for size in ENDS]


def results_tables() -> list[str]:
    """Between the markers of docs/results.md."""
    return [
        "## Learned from a mix, at equal tokens",
        "",
        *equal_table(),
        "",
        "## Learned from WikiText-2, at equal tokens",
        "",
        *domain_table(),
        "",
        "## Settings of one run for all sizes",
        "",
        *headline_table(),
        "",
        "## Other methods, each as it is used",
        "",
        *methods_table(),
    ]


def headline_table() -> list[str]:
    """The experiment "headline": a row for each setting, a column for each size."""
    results = read_committed(HERE / "results" / "headline.json")
    keeps = sorted({m["keep_asked"] for r in results for m in r["models"]}, reverse=True)
    columns = ["", *(f"keep {keep:g}" for keep in keeps), "tokens"]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for result in results:
        by_keep = {model["keep_asked"]: model["perplexity"] for model in result["models"]}
        cells = [result["name"], *(f"{by_keep[keep]:.1f}" for keep in keeps)]
        lines.append(f"| {' | '.join(cells)} | {result['tokens_seen'] / 1e3:.0f} k |")
    return [
        *lines,
        "",
        f"WikiText-2 perplexity, the first 16 windows of 1,024 tokens (original "
        f"{results[0]['dense']['perplexity']:.1f}; standard errors are 14 %, but all rows read the "
        "same windows). All are `--recipe domain --least-cut 0`; scales are learned where a row "
        f"does not say *masks only*. {Times.of(results).machines_said} "
        "[Errors and seconds](../experiments/results/headline.md).",
    ]


def methods_table() -> list[str]:
    """Methods at each size, ours first, with their speed at the smallest."""
    result = compared(AS_USED)
    assert result is not None
    return [
        *rows_by_method(result, page_settings()["names"]),
        "",
        "The same text, budget and evaluation. Each method is written here from its paper, with "
        "the tokens that it is used with; all that it stores is counted. Speed is that of the "
        "smallest size, a prompt of 512 tokens and a token after 512, over the original's "
        f"({result['hardware']['cpu']}). More methods, the mix, equal tokens and equal time: "
        "[all comparisons](../experiments/baselines/tables.md).",
    ]


def rows_by_method(result: dict, names: dict[str, str]) -> list[str]:
    """A row for each of these methods: a figure a size, its speed at the smallest, its tokens."""
    keeps = result["asked"]["keep"]
    general = any("general_ratio" in row for row in result["rows"])
    timed = any("prefill_speedup" in row for row in result["rows"])
    phases = ("prefill", "decode") if timed else ()
    columns = ["", *(f"keep {keep:g}" for keep in keeps), *phases, "tokens", "s"]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    found: dict[str, dict[float, dict]] = {}
    for row in result["rows"]:
        found.setdefault(row["method"], {})[row["keep_asked"]] = row
    for method, name in names.items():
        if method not in found:
            continue
        rows = [found[method][keep] for keep in keeps if keep in found[method]]
        smallest = rows[-1]
        cells = [_lost(found[method].get(keep), general) for keep in keeps]
        times = (smallest.get(f"{phase}_speedup") for phase in phases)
        cells += ["–" if time is None else f"×{time:.2f}" for time in times]
        seconds = smallest["seconds"]
        cells += [f"{(smallest['tokens_seen'] or 0) / 1e3:.0f} k"]
        cells += ["–" if seconds is None else f"{seconds:.0f}"]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def _lost(row: dict | None, general: bool) -> str:
    """A row's general ratio, or its perplexity; – where it has failed."""
    if row is None or row["perplexity"] is None:
        return "–"
    if general:
        wiki = row["texts"]["WikiText-2"]["perplexity"]
        return f"{ratio(row).replace(' ', '')}, {wiki:.1f}"
    return f"{row['perplexity']:,.1f}"


def baselines_page() -> str:
    """baselines/tables.md: every comparison, and what other code measured for the same methods."""
    page = page_settings()
    lines = ["# Baselines", "", "Generated by `make tables`; do not edit.", ""]
    lines += [page["introduction"].strip(), ""]
    for comparison in page["comparison"]:
        result = compared(comparison["file"])
        lines += [f"## {comparison['title']}", "", "```"]
        lines += [f"disp-llm compare smollm2-135m {comparison['flags']} --text …", "```", ""]
        if result is None:
            lines += ["Not run yet.", ""]
            continue
        elsewhere = page["names"] if comparison["file"] == AS_USED else {}
        methods = dict.fromkeys(row["method"] for row in result["rows"])
        names = {name: f"`{name}`" for name in methods if name not in elsewhere}
        lines += [*rows_by_method(result, names), "", origin_of_rows(result), ""]
    lines += ["## Against independent figures", "", *independent(page["independent"])]
    return "\n".join(lines) + "\n"


def independent(told: dict) -> list[str]:
    """Perplexities of other code beside ours, and the ratio."""
    result = compared(AS_USED)
    if result is None:
        return ["Not run yet."]
    found = {(row["method"], f"{row['keep_asked']:g}"): row["perplexity"] for row in result["rows"]}
    lines = ["| method | " + " | ".join(f"keep {size}: other, here" for size in SIZES) + " |"]
    lines.append("|---|" + "---:|" * len(SIZES))
    measured = {method for method, _ in found}
    for method, others in told.items():
        if method not in measured:
            continue
        pairs = [(other, found[method, size]) for size, other in zip(SIZES, others, strict=True)]
        cells = [
            f"{other:,.1f}, {own:,.1f} ({own / other - 1:+.0%})" if other else f"–, {own:,.1f}"
            for other, own in pairs
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return [*lines, "", told["note"].strip()]
