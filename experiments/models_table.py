"""Several models pruned by one recipe: what each loses, and what it takes to make it."""

from comparison_rows import HERE
from machines import Times
from markdown_table import table
from test_suite import on_test_suite

from disp_llm.reporting.tables import megabytes


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
    rows = []
    for result in done:
        original = result["original"]
        for model in result["models"]:
            measured = final.get((result["name"], model["keep_asked"]))
            rows.append(
                [
                    f"{result['name']}, keep {model['keep_asked']:g}",
                    f"×{model['general_ratio']:.3f}",
                    "–" if measured is None else f"×{measured:.3f}",
                    f"{megabytes(model['bytes'])} of {megabytes(original['bytes'])}",
                    f"×{model['prefill_speedup']:.2f}",
                    f"×{model['decode_speedup']:.2f}",
                    f"{result['seconds'] / 60:.0f}",
                    f"{result['peak_memory_bytes'] / 2**30:.1f}",
                ]
            )
    columns = ["", "development suite", "test suite", "bytes", "prompt", "token", "minutes", "GiB"]
    machines = Times.of(done).machines_said
    note = f"Both sizes of a model come from one run of so many minutes. {machines}"
    return [*table(columns, rows), "", note]
