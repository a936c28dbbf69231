"""Figures of the suites that choose nothing, which final.py has measured."""

from pathlib import Path

from committed import read_committed

FIGURES = {"general_ratio", "general_ratio_stderr", "texts"}


def measured_in(folder: Path, suite: str = "test") -> dict:
    """What a folder of results holds of a suite: the originals, and a row for every model."""
    path = folder / f"{suite}.json"
    return read_committed(path) if path.exists() else {"originals": {}, "models": []}


def size_of(model: dict) -> float:
    """The share that was asked for; of a recovery, which asks for none, that which it has."""
    return model["keep_asked"] if "keep_asked" in model else round(model["keep"], 2)


def rows_of(experiment: str, folder: Path, suite: str = "test") -> dict[tuple[str, float], dict]:
    """What a suite has measured of an experiment, by variant and size."""
    return {
        (row["variant"], row["keep"]): row
        for row in measured_in(folder, suite)["models"]
        if row["experiment"] == experiment
    }


def on_test_suite(experiment: str, results: list[dict], folder: Path) -> list[dict]:
    """The results of an experiment with the ratios of the test suite; what was not measured there
    is left out."""
    known = {
        size: {key: row[key] for key in FIGURES}
        for size, row in rows_of(experiment, folder).items()
    }
    found = []
    for result in results:
        pairs = [(one, (result["name"], size_of(one))) for one in result.get("models", ())]
        there = [one | known[key] for one, key in pairs if key in known]
        found += [result | {"models": there}] * bool(there)
    return found
