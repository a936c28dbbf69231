"""All weights from three times the text: tables of losses over seeds, and what tasks keep."""

from committed import read_committed
from comparison_rows import HERE, said_tokens
from contest_table import beside_default, losses
from markdown_table import table
from test_suite import measured_in

from disp_llm.runs.scores import percent_with_error

OURS = "all weights"


def passes_table(results: list[dict]) -> list[str]:
    """Beside the default, on the test suite where models were measured there, and on the
    development suite."""
    lines = list[str]()
    for suite, found in beside_default("passes", results):
        lines += [*losses(found, suite, OURS), ""]
    return [*lines, *kept_table()][:-1]


def kept_table() -> list[str]:
    """Accuracy above chance over that of the original, and the accuracies that it is of."""
    told = measured_in(HERE / "results", "tasks")
    rows = [row for row in told["models"] if row["experiment"] == "passes"]
    if not rows:
        return []
    names = list(rows[0]["tasks"])
    cells = [
        [
            f"{row['variant']}, keep {row['keep']:g}",
            percent_with_error(row["kept"], row["kept_stderr"]),
            *(f"{row['tasks'][name][row['tasks'][name]['metric']]:.1%}" for name in names),
        ]
        for row in rows
    ]
    originals = (f"{rows[0]['tasks'][name]['original']:.1%}" for name in names)
    cells.append(["the original", "", *originals])
    return [*table(["zero shots", "kept", *names], cells), ""]


def passes_block() -> list[str]:
    """The block of docs/results.md."""
    results = read_committed(HERE / "results" / "passes.json")
    note = (
        f"`--recipe retrain` reads {said_tokens([one['tokens_seen'] for one in results])} tokens "
        "of the [mix](../experiments/results/general.md) once and trains all weights with the "
        "masks, one run for all sizes. *Kept* is the share of accuracy above chance. "
        "[Every run](../experiments/results/passes.md)."
    )
    return [*passes_table(results), "", note]
