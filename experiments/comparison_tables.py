"""Tables that set methods side by side: baselines/tables.md, docs/results.md and README.md."""

from committed import read_committed
from comparison_rows import (
    AS_USED,
    ENDS,
    HERE,
    SIZES,
    WHOLE,
    WORDS,
    Figures,
    Row,
    compared,
    domain_rows,
    mix_rows,
    original_of,
    page_settings,
    ratio,
    span,
)
from machines import Times, origin_of_rows
from markdown_table import table
from seeds_table import ahead_in
from test_suite import measured_in


def general_table() -> list[str]:
    """How many times the original's perplexity each has, over texts that it did not learn from."""
    rows, told = mix_rows("general"), page_settings()["general"]
    sizes = [f"{size:g}" for size in told["sizes"]]
    columns = ["times the original's perplexity", *(f"keep {size}" for size in sizes)]
    cells = [
        [
            ", ".join(
                [
                    row.name.partition(", ")[2] or row.name,
                    f"{WORDS[row.seeds]} seed{'s' * (row.seeds > 1)}",
                    f"{row.tokens_said} tokens",
                ]
            ),
            *(f"{row.general[size].mean:.2f}" if size in row.general else "–" for size in sizes),
        ]
        for row in rows
    ]
    (suite,) = {len(one["texts"]) for one in measured_in(HERE / "results")["models"]}
    return [*table(columns, cells), "", told["note"].strip().format(texts=WORDS[suite])]


def headline() -> list[str]:
    """The result of README.md: ours beside the strongest other, over texts that chose nothing."""
    rows, sizes = mix_rows("general"), [f"{one:g}" for one in page_settings()["general"]["sizes"]]
    ours, others = rows[0], [row for row in rows if not row.ours]

    def said(rows: list[Row]) -> str:
        return ", ".join(f"×{min(row.general[size].mean for row in rows):.2f}" for size in sizes)

    assert ours.ours
    return [
        f"**Keep {', '.join(sizes)} of SmolLM2-135M: perplexity {said([ours])}, best other "
        f"{said(others)}.**"
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
    original = original_of("seeds-mix")
    results = read_committed(HERE / "results" / "seeds-mix.json")
    large, small = map(float, ENDS)
    learned, scales, masks = "learned", "masks_and_scales", "masks_only"
    rivals = ("grasprune", "ddp")
    everywhere = ahead_in(results, learned, (*rivals, "sparsegpt_2_4"), (large, small))
    figures = {
        "seeds": WORDS[max(row.seeds for row in rows)],
        "sparsegpt": WORDS[seeds_of(rows, "SparseGPT")],
        "texts": WORDS[len(original["texts"]) - (WHOLE in original["texts"])],
        "whole": f"{original['texts'][WHOLE]['perplexity']:.1f}",
        "c4": f"{original['texts']['C4']['perplexity']:.1f}",
        "large": ENDS[0],
        "small": ENDS[1],
        "adapters": _seeds_said(everywhere),
        "scales_large": _seeds_said(ahead_in(results, scales, rivals, (large,))),
        "scales_small": _seeds_said(ahead_in(results, scales, rivals, (small,))),
        "masks_large": _seeds_said(ahead_in(results, masks, rivals, (large,))),
        "masks_small": _seeds_said(ahead_in(results, masks, rivals, (small,))),
    }
    return _table("from as many tokens", "times the original's", rows, cells, "equal", figures)


def seeds_of(rows: list[Row], name: str) -> int:
    """The seeds of the row whose name begins so."""
    (found,) = (row.seeds for row in rows if row.plain_name.startswith(name))
    return found


def _seeds_said(ahead: list[bool]) -> str:
    """`every seed`, or `two of three seeds`."""
    if all(ahead):
        return "every seed"
    return f"{WORDS[sum(ahead)]} of {WORDS[len(ahead)]} seeds" if any(ahead) else "no seed"


def domain_table() -> list[str]:
    """Of docs/results.md: equal tokens of WikiText-2, there and on texts that no row has read."""
    rows = domain_rows()
    cells = [_said(row.perplexity) for row in rows]
    original = original_of("seeds")
    figures = {
        "original": f"{original['perplexity']:.1f}",
        "c4": f"{original['texts']['C4']['perplexity']:.1f}",
        "seeds": WORDS[max(row.seeds for row in rows)],
        "greedy": WORDS[seeds_of(rows, "Greedy")],
        "masks_only": WORDS[seeds_of(rows, "disp-llm, masks only")],
    }
    return _table("perplexity", "WikiText-2", rows, cells, "domain", figures)


def _table(
    title: str,
    figure: str,
    rows: list[Row],
    cells: list[list[str]],
    name: str,
    figures: dict[str, str],
) -> list[str]:
    """Rows with the cells of one figure, then perplexities on the texts of the table's settings,
    and its note with the figures that this names."""
    told = page_settings()[name]
    columns = [title, *(f"{name}, {size}" for name in (figure, *told["texts"]) for size in ENDS)]
    lines = [
        [
            row.name,
            *of_row,
            *(cell for text in told["texts"] for cell in _said(row.texts.get(text, {}))),
            row.tokens_said,
        ]
        for row, of_row in zip(rows, cells, strict=True)
    ]
    return [*table([*columns, "tokens"], lines), "", told["note"].strip().format(**figures)]


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
    rows = []
    errors = [m["perplexity_stderr"] / m["perplexity"] for r in results for m in r["models"]]
    for result in results:
        by_keep = {model["keep_asked"]: model["perplexity"] for model in result["models"]}
        figures = (f"{by_keep[keep]:.1f}" for keep in keeps)
        rows.append([result["name"], *figures, f"{result['tokens_seen'] / 1e3:.0f} k"])
    return [
        *table(columns, rows),
        "",
        f"WikiText-2 perplexity, the first 16 windows of 1,024 tokens (original "
        f"{results[0]['original']['perplexity']:.1f}; standard errors are "
        f"{span([100 * error for error in errors])} %, but all rows read the same windows). "
        "All are `--recipe domain --least-cut 0`; scales are learned where a row does not say "
        f"*masks only*. {Times.of(results).machines_said} "
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
    lines = []
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
        lines.append([name, *cells])
    return table(columns, lines)


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
    columns = ["method", *(f"keep {size}: other, here" for size in SIZES)]
    lines = []
    measured = {method for method, _ in found}
    for method, others in told.items():
        if method not in measured:
            continue
        pairs = [(other, found[method, size]) for size, other in zip(SIZES, others, strict=True)]
        cells = [
            f"{other:,.1f}, {own:,.1f} ({own / other - 1:+.0%})" if other else f"–, {own:,.1f}"
            for other, own in pairs
        ]
        lines.append([method, *cells])
    return [*table(columns, lines), "", told["note"].strip()]
