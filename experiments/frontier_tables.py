"""The frontier of committed results: results/frontier.md, and the tables of docs/results.md.

Every number comes from `results/frontier.json` or, for how pruning and quantising go together, from
`benchmarks/results/quantise.json`.
"""

from committed import as_compared, read_committed
from comparison_rows import HERE, WORDS
from machines import machine, origin_of_rows
from markdown_table import table

from disp_lab.names import ORIGINAL, OURS
from disp_lab.reporting.frontier import COSTS, Cost, Frontier, Point

RESULTS = HERE / "results" / "frontier.json"
QUANTISED = HERE.parent / "benchmarks" / "results" / "quantise.json"
MODES = ("eager", "compiled")
WANTED = {
    "prefill": "a prompt is to take less time",
    "decode": "a token is to take less time",
    "memory": "the model is to take less memory",
}
"""What a reader wants who looks at a cost."""

NAMES = """\
`learned` is today's `--recipe disp`, `latency` ours at a share of the original's time of a
prompt; other names are [methods](commands.md#methods)."""

TO_TAKE = """\
Beside each model of another method stands the best of ours, or of the original in int8 or int4,
that takes its time or less. Tokens read are not equal: {}."""


def frontier() -> Frontier:
    """The one variant of the experiment."""
    (result,) = read_committed(RESULTS)
    return Frontier.of(as_compared(result))


def comparison_section(result: dict) -> list[str]:
    """One comparison of results/NAME.md: every row, and ours at the time of others."""
    lines = [f"## {result['name']}", ""]
    if "error" in result:
        return [*lines, f"{result['error']}.", ""]
    measured = Frontier.of(as_compared(result))
    lines += ["Speeds are times as fast as the original.", ""]
    lines += [*measured.table().markdown(), ""]
    lines += ["## At the time of others", "", TO_TAKE.format(tokens_read(measured)), ""]
    return [*lines, *beside(measured), "", origin_of_rows(result), ""]


def choices() -> list[str]:
    """Between the markers of docs/results.md: the fronts, and quantising."""
    chart = "![Perplexity over prefill, decode and memory](frontier.png)"
    lines = ["## Smaller, faster, or both", "", chart, "", NAMES, "", *fronts(frontier()), ""]
    lines += ["[All rows, and ours beside others](../experiments/results/frontier.md).", ""]
    return [*lines, "## Prune, quantise, or both", "", *quantising()]


def fronts(frontier: Frontier) -> list[str]:
    """A row a cost: what nothing dominates, the cheapest last; of times those that save some."""
    title = (
        f"the Pareto front: {frontier.value_name} at its cost, a speed as times the original's, "
        "memory with the KV cache of 512 tokens"
    )
    rows = []
    for cost in COSTS:
        said = "; ".join(
            f"{point.row.name}: {point.value:,.2f} at {cost.said(point.cost)}"
            for point in reversed(frontier.front(cost))
            if cost.name == "memory" or (point.cost < 1 and point.row.name != "original")
        )
        rows.append((WANTED[cost.name], said))
    return table(("if", title), rows, "ll")


def beside(frontier: Frontier) -> list[str]:
    """A row a model of another method, with what to take in its place."""
    prefill, decode, _ = COSTS
    at_decode = ours_beside(frontier, decode)
    rows = []
    for name, (other, own) in ours_beside(frontier, prefill).items():
        cells = [name, f"{other.value:,.2f}", prefill.said(other.cost), _said(own, other)]
        theirs, mine = at_decode[name]
        rows.append([*cells, decode.said(theirs.cost), _said(mine, theirs)])
    faster = "as fast or faster"
    columns = ("method", frontier.value_name, "prefill", faster, "decode", faster)
    return table(columns, rows, "lrrlrl")


def tokens_read(frontier: Frontier) -> str:
    """`63,488 tokens of text for ours, 12,288 for the others`: the most that a row of each read."""
    read = {row.method: row.tokens_seen or 0 for row in frontier.rows if row.method != ORIGINAL}
    own = max((tokens for method, tokens in read.items() if method in OURS), default=0)
    others = max((tokens for method, tokens in read.items() if method not in OURS), default=0)
    return f"{own:,} tokens of text for ours, {others:,} for the others"


def ours_beside(frontier: Frontier, cost: Cost) -> dict[str, tuple[Point, Point | None]]:
    """Every model of another method by its name, and what to take in its place: the best of ours,
    or of the original in fewer bits, that costs as much or less."""
    points = frontier.points(cost)
    own = [
        p for p in points if p.row.method in OURS or (p.row.method == ORIGINAL and p.row.weights)
    ]
    return {
        other.row.name: (other, next((one for one in own if one.cost <= other.cost), None))
        for other in points
        if other.row.method not in (*OURS, ORIGINAL)
    }


def _said(own: Point | None, other: Point) -> str:
    """`learned keep 0.5: 50.92`, and whether that is behind."""
    if own is None:
        return "none is as fast"
    behind = "" if own.value <= other.value else ", behind"
    return f"{own.row.name}: {own.value:,.2f}{behind}"


def quantising() -> list[str]:
    """Models in three kinds of weights, from the benchmark."""
    found = read_committed(QUANTISED)
    rows = []
    front = [id(row) for row in front_of_bytes(found["rows"])]
    for row in found["rows"]:
        speeds = (f"×{row[mode]['speedup']:.2f}" if mode in row else "" for mode in MODES)
        cells = (
            row["model"],
            row["weights"],
            f"{row['bytes'] / 1e6:.0f}",
            f"×{row['general_ratio']:.3f}",
            *speeds,
            "yes" if id(row) in front else "",
        )
        rows.append(cells)
    texts = WORDS[len(found["rows"][0]["texts"])]
    note = (
        f"Times the original's perplexity over {texts} texts. The pruned models have been "
        "recovered; *trained alike* is the original after as much of that training as one "
        "recovery, so compare with that. *Reordered* is the original with its channels in another "
        "order: its own file was rounded in groups of 32, so int4 costs it nothing in that order "
        "alone. torchao, nothing calibrated; decode over the original's in bfloat16. "
        f"{machine(found)}, `python benchmarks/quantise.py`."
    )
    columns = (
        *("model", "weights", "MB", "times the original's"),
        *("decode, eager", "compiled", "on the front"),
    )
    return [*table(columns, rows, "llrrrrc"), "", note]


def front_of_bytes(rows: list[dict]) -> list[dict]:
    """What loses less than all that takes as many bytes or fewer, the largest first."""
    front: list[dict] = []
    for row in sorted(rows, key=lambda row: (row["bytes"], row["general_ratio"])):
        if not front or row["general_ratio"] < front[-1]["general_ratio"]:
            front.append(row)
    return front[::-1]
