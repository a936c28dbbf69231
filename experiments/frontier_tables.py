"""The frontier of committed results: its section of docs/reproduce.md, and docs/choose.md's tables.

Every number comes from `results/frontier.json` or, for how pruning and quantising go together, from
`benchmarks/results/quantise.json`; where the first has not been run, the text says so.
"""

import json
from dataclasses import dataclass

from comparison_tables import HERE, figure, ratio
from machines import origin_of_rows, origins

from disp_lab.names import DENSE, OURS
from disp_lab.reporting.frontier import COSTS, Frontier, Point, frontier_lines
from disp_lab.reporting.tables import markdown

RESULTS = HERE / "results" / "frontier.json"
QUANTISED = HERE.parent / "benchmarks" / "results" / "quantise.json"
COMMAND = "make experiments/frontier"
MODES = ("eager", "compiled")
WANTED = {
    "prefill": "a prompt is to take less time",
    "decode": "a token is to take less time",
    "memory": "the model is to take less memory",
}
"""What a reader wants who looks at a cost."""

NAMES = """\
`learned` is ours by block parameters, `latency 0.65` ours at 65 % of the original's time of a
prompt; the other names are those of [the methods](commands.md#methods)."""

COSTS_OF_ROUNDING = {
    "int8": "",
    "int4": """ The file that the original is unpacked from was rounded in groups of 32 \
inputs, as int4 is, so to round it again costs next to nothing. *Reordered* has the same weights \
with the channels in another order ([benchmarks/reorder.py](../benchmarks/reorder.py)): the same \
function in other groups, as in a model whose file nobody had rounded, and as in a pruned one.""",
}
"""Kinds of weights, and what explains what they cost."""

TO_TAKE = """\
Beside each model of another method stands the best of ours, or of the original in int8 or int4,
that takes its time or less (shares of the original's time). What was read is not equal: {}."""


@dataclass(frozen=True)
class Measured:
    """A comparison that has been run."""

    result: dict
    """What `compare.json` holds."""

    @property
    def machine(self) -> str:
        """What it ran on."""
        return origin_of_rows(self.result)


def frontier() -> Measured | None:
    """The first variant of the experiment, if it has been run."""
    if not RESULTS.exists():
        return None
    found = [result for result in json.loads(RESULTS.read_text()) if "rows" in result]
    return Measured(found[0]) if found else None


def comparison_section(result: dict, file: str) -> list[str]:
    """One comparison of docs/reproduce.md: every row, and what dominates what."""
    lines = [f"### {result['name']}", ""]
    if "error" in result:
        return [*lines, f"{result['error']}.", ""]
    table = frontier_lines(result)
    said = f"From `experiments/results/{file}`"
    lines += [f"{said}; times are shares of the original's." if table else f"{said}.", ""]
    table = table or markdown(result).rstrip().splitlines()
    return [*lines, *table, "", Measured(result).machine, ""]


def choices() -> list[str]:
    """Between the markers of docs/choose.md: the fronts, ours beside others, and quantising."""
    found = frontier()
    lines = ["## Smaller, faster, or both", ""]
    if found is None:
        lines += [f"The frontier has not been run yet: `{COMMAND}` fills this part."]
    else:
        measured = Frontier.of(found.result)
        lines += ["![Perplexity over prefill, decode and memory](frontier.png)", "", NAMES, ""]
        lines += [*fronts(measured), "", "### At the time of others", ""]
        lines += [TO_TAKE.format(tokens_read(measured)), "", *beside(measured), ""]
        lines += [f"{found.machine} All rows: [reproduce.md](reproduce.md#frontier)."]
    return [*lines, "", "## Prune, quantise, or both", "", *quantising(), "", *when(found)]


def readme_picture() -> list[str]:
    """The picture of README.md, once there is one."""
    if frontier() is None:
        return []
    return ["", "![Perplexity over prefill, decode and memory](docs/frontier.png)"]


def fronts(frontier: Frontier) -> list[str]:
    """A row a cost: what nothing dominates, the cheapest last; of times those that save some."""
    lines = [
        f"| if | the Pareto front: {frontier.value_name} at its cost, a time as a share of the "
        "original's, memory with the KV cache of 512 tokens |",
        "|---|---|",
    ]
    for cost in COSTS:
        said = "; ".join(
            f"{point.row.name}: {point.value:,.2f} at {cost.said(point.cost)}"
            for point in reversed(frontier.front(cost))
            if cost.name == "memory" or (point.cost < 1 and point.row.name != DENSE)
        )
        lines.append(f"| {WANTED[cost.name]} | {said} |")
    return lines


def beside(frontier: Frontier) -> list[str]:
    """A row a model of another method, with what to take in its place."""
    lines = [
        f"| method | {frontier.value_name} | prefill | in that time or less | decode "
        "| in that time or less |",
        "|---|---:|---:|---|---:|---|",
    ]
    prefill, decode = (dict(_by_name(frontier, cost)) for cost in COSTS[:2])
    for name, (other, own) in prefill.items():
        cells = [name, f"{other.value:,.2f}", f"{other.cost:.2f}", _said(own, other)]
        theirs, mine = decode[name]
        lines.append(f"| {' | '.join([*cells, f'{theirs.cost:.2f}', _said(mine, theirs)])} |")
    return lines


def tokens_read(frontier: Frontier) -> str:
    """`63,488 tokens of text for ours, 12,288 for the others`: the most that a row of each read."""
    read = {row.method: row.tokens_seen or 0 for row in frontier.rows if row.method != DENSE}
    own = max((tokens for method, tokens in read.items() if method in OURS), default=0)
    others = max((tokens for method, tokens in read.items() if method not in OURS), default=0)
    return f"{own:,} tokens of text for ours, {others:,} for the others"


def _by_name(frontier: Frontier, cost) -> list[tuple[str, tuple[Point, Point | None]]]:
    return [(other.row.name, (other, own)) for other, own in frontier.ours_beside(cost)]


def _said(own: Point | None, other: Point) -> str:
    """`learned keep 0.5: 50.92`, and whether that is behind."""
    if own is None:
        return "none is as fast"
    behind = "" if own.value <= other.value else ", behind"
    return f"{own.row.name}: {own.value:,.2f}{behind}"


def quantising() -> list[str]:
    """Models in three kinds of weights, from the benchmark."""
    found = json.loads(QUANTISED.read_text())
    lines = [
        "| model | weights | MB | times the original's | WikiText-2 | decode, eager "
        "| decode, compiled | nothing as small loses less |",
        "|---|---|---:|---:|---:|---:|---:|:-:|",
    ]
    front = [id(row) for row in front_of_bytes(found["rows"])]
    for row in found["rows"]:
        speeds = (f"×{row[mode]['speedup']:.2f}" if mode in row else "" for mode in MODES)
        cells = [row["model"], row["weights"], f"{row['bytes'] / 1e6:.1f}", ratio(row)]
        cells += [figure(row["texts"]["WikiText-2"]), *speeds]
        lines.append(f"| {' | '.join(cells)} | {'yes' if id(row) in front else ''} |")
    note = (
        "Times the original's perplexity: geometric mean over the texts of "
        "[texts.toml](../experiments/suites/texts.toml), of which WikiText-2 is one. Keep 0.8 and "
        "0.5 are the models of the first row of [what is lost](../README.md#what-is-lost), widths "
        "in 32s. By torchao: int8 with a scale a row, int4 in groups of 32, nothing calibrated "
        "(`disp-llm quantise --to int4 --text` is, [how](use-the-result.md#quantise)). Speed of "
        "one token after 128, as a multiple of the original's in bfloat16 in the same mode; what "
        f"has the original's shapes has its speed. {origins([found])} `{found['command']}`."
    )
    return [*lines, "", note]


def front_of_bytes(rows: list[dict]) -> list[dict]:
    """What loses less than all that takes as many bytes or fewer, the largest first."""
    front: list[dict] = []
    for row in sorted(rows, key=lambda row: (row["bytes"], row["general_ratio"])):
        if not front or row["general_ratio"] < front[-1]["general_ratio"]:
            front.append(row)
    return front[::-1]


def when(found: Measured | None) -> list[str]:
    """What follows of the numbers: when to prune, when to quantise, when both."""
    rows = json.loads(QUANTISED.read_text())["rows"]
    front = "; ".join(
        f"{_named(row)} ×{row['general_ratio']:.2f} at {row['bytes'] / 1e6:.0f} MB"
        for row in front_of_bytes(rows)
    )
    lines = [
        "- **Memory alone: quantise first, and prune what is then still too large.** The least "
        f"that is lost at a size, largest first: {front}. *Trained alike* is the original after "
        "500 k tokens of `recover`'s training, which the pruned models have had too, beside what "
        "they learned before: they are to be set against that."
    ]
    for kind, why in COSTS_OF_ROUNDING.items():
        costs = ", ".join(
            f"{row['model']} ×{row['general_ratio'] / full['general_ratio']:.3f}"
            for full, row in _of_kind(rows, kind)
        )
        lines.append(
            f"- **What {kind} costs**, as a multiple of the same in bfloat16: {costs}.{why}"
        )
    timed = [row for row in rows if all(mode in row for mode in MODES)]
    fastest = {mode: max(timed, key=lambda row: row[mode]["speedup"]) for mode in MODES}
    said = ", ".join(
        f"{mode} {_named(row)} (×{row[mode]['speedup']:.2f})" for mode, row in fastest.items()
    )
    lines.append(
        f"- **Time of a token.** The fastest: {said}, each against the original in bfloat16 in "
        "the same mode. Eager, int8 unpacks its weights for each product."
    )
    if found is None:
        return lines
    frontier = Frontier.of(found.result)
    for cost in COSTS[:2]:
        faster = [p for p in frontier.points(cost) if p.row.weights and p.cost < 1]
        packed = ", ".join(f"{p.row.name} → {p.cost:.2f}" for p in faster) or "none"
        own = [p for p in frontier.front(cost) if p.row.method in OURS]
        pruned = ", ".join(f"{p.row.name} → {p.cost:.2f}" for p in own) or "none"
        lines.append(
            f"- **Time of {cost.name}** (the original = 1). Quantised models that are faster, "
            f"eager: {packed}. Ours that no other model beats: {pruned}."
        )
    return lines


def _named(row: dict) -> str:
    return f"{row['model']} in {row['weights']}"


def _of_kind(rows: list[dict], kind: str) -> list[tuple[dict, dict]]:
    """Every model in bfloat16 beside itself in that kind of weights."""
    full = {row["model"]: row for row in rows if row["weights"] == "bf16"}
    return [(full[row["model"]], row) for row in rows if row["weights"] == kind]
