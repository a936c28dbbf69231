"""JSON objects that commands have written -> the typed results in them."""

from typing import Any

from disp_llm.runs.results import BenchComparison, BenchRow, ComparisonRow, from_json


def comparison_rows(result: dict[str, Any], file: str = "compare.json") -> list[ComparisonRow]:
    """The rows of what `compare.json` holds.

    Raises:
        InputError: a value is missing; `file` says where.
    """
    return [from_json(ComparisonRow, row, file) for row in result["rows"]]


def bench_rows(
    result: dict[str, Any], file: str
) -> list[tuple[BenchComparison, BenchRow, BenchRow]]:
    """For every workload how the models compare, and the figures of the original and the pruned
    one.

    Raises:
        InputError: a figure is missing; `file` says where.
    """
    rows = [from_json(BenchRow, row, file) for row in result["results"]]
    comparisons = [from_json(BenchComparison, row, file) for row in result["comparisons"]]
    return list(zip(comparisons, rows[::2], rows[1::2], strict=True))
