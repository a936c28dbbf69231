"""Times in the programs that people run models in: a part of docs/run.md."""

from committed import read_committed
from comparison_rows import HERE
from markdown_table import table

FILE = HERE.parent / "benchmarks" / "results" / "engines.json"


def engines_table() -> list[str]:
    """A row for each program, and what is counted: how many times as fast as the original."""
    told = read_committed(FILE)
    keeps = sorted({row["keep"] for row in told["rows"]}, reverse=True)
    cells = [(keep, phase) for keep in keeps for phase in ("prefill", "decode")]
    found = {(row["in"], row["keep"]): row for row in told["rows"]}
    ways = list(dict.fromkeys(row["in"] for row in told["rows"]))
    rows = [[way, *(f"×{found[way, keep][phase][0]:.2f}" for keep, phase in cells)] for way in ways]
    counted = {row["keep"]: row["counted"] for row in told["rows"]}
    rows.append(["counted", *(f"×{counted[keep][phase]:.2f}" for keep, phase in cells)])
    names = {"prefill": "prompt", "decode": "token"}
    columns = ["times as fast", *(f"{names[phase]}, keep {keep:g}" for keep, phase in cells)]
    hardware = told["hardware"]
    note = (
        "The default of SmolLM2-135M, a prompt of 512 tokens and a token after it, each in turn "
        f"with the original, medians of {told['rounds']} rounds on {hardware['cpu']}, "
        f"{hardware['threads']} threads. Counted are block parameters for a prompt, and weights "
        "that are read for a token; attention over the context is not. "
        "[Quartiles](../benchmarks/results/engines.json)."
    )
    return [*table(columns, rows), "", note]
