"""What runs took: the times and the memory of docs/guide.md, from committed results."""

from comparison_rows import WORDS, said_tokens, span, variants_of
from machines import machine
from markdown_table import table

RUNS = {
    "`prune`": (
        "contest",
        ["channels and heads, seed 0", "channels and heads, seed 1", "channels and heads, seed 2"],
    ),
    "`prune --recipe retrain`": (
        "general",
        [
            "all weights too, by Muon, 237 steps, step sizes that fall to nothing",
            "all weights too, by Muon, 237 steps, step sizes that fall to nothing, seed 1",
        ],
    ),
    "`recover`": (
        "recover-general",
        [f"two phases, keep {keep}" for keep in ("0.8", "0.7", "0.6", "0.5")],
    ),
}
"""Commands, each with its experiment and the variants of that which ran it."""


def costs() -> list[str]:
    """A row a command: the least and the most that a run of it took, by machine."""
    found = {
        command: variants_of({"experiment": experiment, "variant": variants})
        for command, (experiment, variants) in RUNS.items()
    }
    machines = sorted({machine(result) for results in found.values() for result in results})
    rows = []
    for command, results in found.items():
        assert len(results) == len(RUNS[command][1])
        of_each = [
            [one["seconds"] / 60 for one in results if machine(one) == name] for name in machines
        ]
        memory = [result["peak_memory_bytes"] / 2**30 for result in results]
        read = said_tokens([result["tokens_seen"] for result in results])
        rows.append(
            [command, read, span(memory, 1), *(span(one) if one else "" for one in of_each)]
        )
    columns = ("command", "tokens", "GiB", *(f"minutes, {name}" for name in machines))
    (sizes,) = {len(one["models"]) for one in found["`prune`"]}
    (recovered,) = {len(one["models"]) for one in found["`recover`"]}
    note = (
        "Whole runs, measuring included, `prune` without timing; `retrain` and `recover` at the "
        f"five sites of `disp`: `prune` for {WORDS[sizes]} sizes, `recover` for {WORDS[recovered]}."
    )
    return [*table(columns, rows), "", note]
