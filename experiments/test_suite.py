"""Committed figures of the test suite, which final.py has measured."""

from pathlib import Path

from committed import read_committed

RESULTS = Path(__file__).parent / "results" / "test.json"
FIGURES = {"general_ratio", "general_ratio_stderr", "texts"}


def on_test_suite(experiment: str, results: list[dict]) -> list[dict]:
    """The results of an experiment with the ratios of the test suite; what was not measured there
    is left out."""
    rows = read_committed(RESULTS)["models"] if RESULTS.exists() else []
    known = {
        (row["variant"], row["method"], row["keep"]): row
        for row in rows
        if row["experiment"] == experiment
    }

    def measured(name: str, model: dict) -> dict:
        row = known.get((name, model.get("method", ""), model["keep_asked"]), {})
        return model | {key: row[key] for key in row.keys() & FIGURES} if row else {}

    found = []
    for result in results:
        for kind in result.keys() & {"models", "rows"}:
            there = list(filter(None, (measured(result["name"], one) for one in result[kind])))
            found += [result | {kind: there}] * bool(there)
    return found
