"""Several models pruned by one recipe: what each loses, and what it takes to make it."""

from committed import read_committed
from comparison_rows import HERE
from machines import Times
from markdown_table import table
from test_suite import on_test_suite, rows_of

from disp_llm.reporting.tables import megabytes
from disp_llm.runs.scores import percent_with_error


def models_block() -> list[str]:
    """What stands in docs/results.md."""
    return models_table(read_committed(HERE / "results" / "models.json"))


def models_table(results: list[dict]) -> list[str]:
    """A row for each model and size, the smallest model first."""
    done = sorted(
        (result for result in results if "error" not in result),
        key=lambda result: result["original"]["parameters"],
    )
    final = {
        (result["name"], model["keep_asked"]): model["general_ratio"]
        for result in on_test_suite("models", done, HERE / "results")
        for model in result["models"]
    }
    on_tasks = rows_of("models", HERE / "results", "tasks")
    rows = []
    for result in done:
        original = result["original"]
        for model in result["models"]:
            size = result["name"], model["keep_asked"]
            measured, kept = final.get(size), on_tasks.get(size)
            rows.append(
                [
                    f"{result['name']}, keep {model['keep_asked']:g}",
                    f"×{model['general_ratio']:.3f}",
                    "–" if measured is None else f"×{measured:.3f}",
                    "–" if kept is None else percent_with_error(kept["kept"], kept["kept_stderr"]),
                    f"{megabytes(model['bytes'])} of {megabytes(original['bytes'])}",
                    f"×{model['prefill_speedup']:.2f}",
                    f"×{model['decode_speedup']:.2f}",
                    f"{result['seconds'] / 60:.0f}",
                    f"{result['peak_memory_bytes'] / 2**30:.1f}",
                ]
            )
    suites = "development suite", "test suite", "kept on tasks"
    columns = ["", *suites, "bytes", "prompt", "token", "minutes", "GiB"]
    machines = Times.of(done).machines_said
    asked = {
        task: f"{one['n']:,}" for row in on_tasks.values() for task, one in row["tasks"].items()
    }
    questions = " and ".join(f"{number} questions of {task}" for task, number in asked.items())
    note = (
        f"*Kept* is the share of zero-shot accuracy above chance that stays, over {questions}. "
        f"Both sizes of a model come from one run of so many minutes. {machines}"
    )
    return [*table(columns, rows), "", note]
