"""The frontier of committed results: its section of docs/reproduce.md, and docs/choose.md's tables.

Every number comes from `results/frontier.json` or, for how pruning and quantising go together, from
`benchmarks/results/quantise.json`; where the first has not been run, the text says so.
"""

import json
from dataclasses import dataclass

from comparison_tables import HERE
from machines import origin_of_rows

from disp_llm.config.names import DENSE, OURS
from disp_llm.reporting.comparison import markdown
from disp_llm.reporting.frontier import COSTS, Frontier, Point, frontier_lines

RESULTS = HERE / "results" / "frontier.json"
QUANTISED = HERE.parent / "benchmarks" / "results" / "quantise.json"
COMMAND = "make experiments/frontier"
WANTED = {
    "prefill": "a prompt is to take less time",
    "decode": "a token is to take less time",
    "memory": "the model is to take less memory",
}
"""What a reader wants who looks at a cost."""

NAMES = """\
`learned` is ours by block parameters, `latency 0.65` ours at 65 % of the original's time of a
prompt; the other names are those of [the methods](commands.md#methods)."""

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
    """Dense and pruned in three kinds of weights, from the benchmark of one pruned model."""
    found = json.loads(QUANTISED.read_text())
    lines = [
        "| model | weights | MB | perplexity | decode, eager | decode, compiled |",
        "|---|---|---:|---:|---:|---:|",
    ]
    of = found.get("pruned", {"keep": 0.5, "scaled": False, "adapter_rank": 0})
    pruned = f"keep {of['keep']:.3g}"
    if not of["scaled"] and not of["adapter_rank"]:
        pruned += ", masks only"
    for row in found["rows"]:
        name = "original" if row["model"] == "dense" else pruned
        error = row["perplexity_stderr"]
        modes = (row.get(mode) for mode in ("eager", "compiled"))
        speeds = " | ".join(f"×{mode['speedup']:.2f}" if mode else "–" for mode in modes)
        lines.append(
            f"| {name} | {row['weights']} | {row['bytes'] / 1e6:.1f} | "
            f"{row['perplexity']:.2f} ± {error:.2f} | {speeds} |"
        )
    note = (
        "Speed of one token after 128, as a multiple of the original's in bfloat16 in the same "
        f"mode ({found['hardware']['cpu']}; [benchmarks/quantise.py](../benchmarks/quantise.py))."
    )
    return [*lines, "", note]


def when(found: Measured | None) -> list[str]:
    """What follows of the numbers: when to prune, when to quantise, when both."""
    rows = {
        (row["model"], row["weights"]): row for row in json.loads(QUANTISED.read_text())["rows"]
    }

    def said(model: str, weights: str) -> str:
        row = rows[model, weights]
        return f"{row['perplexity']:.1f} at {row['bytes'] / 1e6:.0f} MB"

    least_dense = min((rows["dense", kind] for kind in ("bf16", "int8", "int4")), key=_bytes)
    lines = [
        "- **Memory alone: quantise first.** The original in int4 has "
        f"{said('dense', 'int4')}, where keep 0.5 in bfloat16 has {said('pruned', 'bf16')}. "
        "The weights of this original lie on a grid of 4 to 6 bits already (it is unpacked from a "
        "GGUF file), so int4 costs it next to nothing; another one may lose more.",
        "- **Smaller than int4: both.** Nothing dense is below "
        f"{_bytes(least_dense) / 1e6:.0f} MB; keep 0.5 in int4 has {said('pruned', 'int4')}, in "
        f"int8 {said('pruned', 'int8')}.",
    ]
    packed = max(rows.values(), key=lambda row: row["eager"]["speedup"])
    named = "the original" if packed["model"] == "dense" else "keep 0.5"
    int8 = rows["dense", "int8"]
    lines.append(
        f"- **Time of a token: quantise.** Eager, {named} in {packed['weights']} is the fastest of "
        f"these (×{packed['eager']['speedup']:.2f}); the original in int8 has "
        f"×{int8['eager']['speedup']:.2f} eager, where weights are unpacked for each product, and "
        f"×{int8['compiled']['speedup']:.2f} compiled, each against the original in the same mode. "
        "The others were not compiled when they were timed, and are to be timed anew."
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


def _bytes(row: dict) -> int:
    return row["bytes"]
