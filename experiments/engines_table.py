"""Times in the programs that people run models in: a part of docs/run.md."""

from committed import read_committed
from comparison_rows import HERE
from markdown_table import table

from disp_lab.results import machine_name

FILE = HERE.parent / "benchmarks" / "results" / "engines.json"
PHASES = {"prefill": "prompt", "decode": "token"}


def engines_table() -> list[str]:
    """A table for each machine, with a row for each program and what is counted: how many times as
    fast as the original."""
    told = read_committed(FILE)
    of_machine: dict[str, list[dict]] = {}
    for row in told["rows"]:
        of_machine.setdefault(machine_name(row["provenance"]["hardware"]), []).append(row)
    tables = [line for item in of_machine.items() for line in [*_of_machine(*item), ""]]
    note = (
        "The default of SmolLM2-135M, a prompt of 512 tokens and a token after it, each in turn "
        f"with the original, medians of {told['rounds']} rounds. Counted are block parameters for "
        "a prompt, and weights that are read for a token; attention over the context is not. "
        "vLLM's sizes are of short runs: widths decide time, not what was learned. "
        "[Quartiles](../benchmarks/results/engines.json)."
    )
    return [*tables, note]


def _of_machine(machine: str, measured: list[dict]) -> list[str]:
    keeps = sorted({row["keep"] for row in measured}, reverse=True)
    cells = [(keep, phase) for keep in keeps for phase in PHASES]
    found = {(row["in"], row["keep"]): row for row in measured}
    ways = list(dict.fromkeys(row["in"] for row in measured))
    rows = [[way, *(f"×{found[way, keep][phase][0]:.2f}" for keep, phase in cells)] for way in ways]
    counted = {row["keep"]: row["counted"] for row in measured}
    rows.append(["counted", *(f"×{counted[keep][phase]:.2f}" for keep, phase in cells)])
    names = (f"{PHASES[phase]}, keep {keep:g}" for keep, phase in cells)
    return table([f"times as fast, {machine}", *names], rows)
