"""Tables that set methods side by side: baselines/tables.md, docs/results.md and README.md."""

from committed import read_committed
from comparison_rows import (
    AS_USED,
    HERE,
    SIZES,
    WORDS,
    Row,
    compared,
    mix_rows,
    page_settings,
    ratio,
)
from machines import origin_of_rows
from markdown_table import table
from test_suite import measured_in, rows_of

from disp_lab.baselines import ALL as BASELINES


def general_table() -> list[str]:
    """How many times the original's perplexity each has, over texts that it did not learn from."""
    rows, told = mix_rows(), page_settings()["general"]
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
            *(f"{row.general[size]:.2f}" if size in row.general else "–" for size in sizes),
        ]
        for row in rows
    ]
    (suite,) = {len(one["texts"]) for one in measured_in(HERE / "results")["models"]}
    note = told["note"].strip().format(texts=WORDS[suite], **_beside_perplexity())
    return [*table(columns, cells), "", note]


def _beside_perplexity() -> dict[str, str]:
    """Of one run of the default: the zero-shot accuracy that the smallest model keeps, and what the
    largest loses."""
    results = read_committed(HERE / "results" / "models.json")
    results.sort(key=lambda result: result["original"]["parameters"])
    smallest, largest = results[0]["name"], results[-1]["name"]

    def measured(suite: str, name: str, figure: str) -> dict[float, float]:
        found = rows_of("models", HERE / "results", suite)
        return {keep: row[figure] for (variant, keep), row in found.items() if variant == name}

    kept = measured("tasks", smallest, "kept")
    ratios = measured("test", largest, "general_ratio")
    assert kept.keys() == ratios.keys()
    return {
        "sizes": " and ".join(f"{size:g}" for size in kept),
        "kept": " and ".join(f"{share:.0%}" for share in kept.values()),
        "larger": largest,
        "ratios": " and ".join(f"×{ratio:.2f}" for ratio in ratios.values()),
    }


def headline() -> list[str]:
    """The result of README.md: ours beside the strongest other, over texts that chose nothing."""
    rows, sizes = mix_rows(), [f"{one:g}" for one in page_settings()["general"]["sizes"]]
    ours, others = rows[0], [row for row in rows if not row.ours]

    def said(rows: list[Row]) -> str:
        return ", ".join(f"×{min(row.general[size] for row in rows):.2f}" for size in sizes)

    assert ours.ours
    return [
        f"**Keep {', '.join(sizes)} of SmolLM2-135M: perplexity {said([ours])}, best other "
        f"{said(others)}.**"
    ]


def as_used_table() -> list[str]:
    """Of docs/results.md: methods at each size, ours first, with their speed at the smallest."""
    result = compared(AS_USED)
    original = result["original"]
    return [
        *rows_by_method(result, page_settings()["names"]),
        "",
        f"Perplexity on {original['tokens']:,} tokens of WikiText-2's test text (original "
        f"{original['perplexity']:.1f}); all learn from its other splits, under one budget. Each "
        "method is written here from its paper, with the tokens that it is used with; all that it "
        "stores is counted. Speed is that of the smallest size, a prompt of 512 tokens and a token "
        f"after 512, over the original's ({result['hardware']['cpu']}); 2:4 runs here at the "
        "original's size. More methods, the mix, equal tokens and equal time: "
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
        whole = method in BASELINES and BASELINES[method].not_smaller
        times = (None if whole else smallest.get(f"{phase}_speedup") for phase in phases)
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
        elsewhere = page["names"] if comparison["file"] == AS_USED else {}
        methods = dict.fromkeys(row["method"] for row in result["rows"])
        names = {name: f"`{name}`" for name in methods if name not in elsewhere}
        lines += [*rows_by_method(result, names), "", origin_of_rows(result), ""]
    lines += ["## Against independent figures", "", *independent(page["independent"])]
    return "\n".join(lines) + "\n"


def independent(told: dict) -> list[str]:
    """Perplexities of other code beside ours, and the ratio."""
    result = compared(AS_USED)
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
