"""Every program of `benchmarks/` still finds what it takes from the package. They measure, so the
suite does not run them; `test_gpu_script.py` among the proofs runs four."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
EXAMPLE = BENCHMARKS.parent / "examples" / "structured_prediction"
OPTIONAL = {"sklearn"}
"""What a program says that it needs, and the suite does without."""


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_finds_what_it_imports(path, monkeypatch):
    for folder in (BENCHMARKS, EXAMPLE):
        monkeypatch.syspath_prepend(str(folder))
    try:
        runpy.run_path(str(path), run_name="imported")
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")
