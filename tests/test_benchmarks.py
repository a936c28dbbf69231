"""Every program of `benchmarks/` still finds what it takes from the package. They measure, so the
suite does not run them; `test_gpu_script.py` among the proofs runs four."""

import importlib
import runpy
from pathlib import Path
from random import Random

import pytest

from disp_llm.cli.flags import extras_of
from disp_llm.cli.parsing import all_settings
from disp_llm.config.settings import settings_of

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


def test_random_lines_know_every_command(monkeypatch):
    """All but those that wait for somebody to type; none gives a flag that there is not."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "soak"))
    lines = importlib.import_module("lines")
    assert lines.SMALL.keys() == lines.POSITIONAL.keys()
    assert lines.SMALL.keys() == all_settings().keys() - lines.INTERACTIVE
    random = Random(0)
    for _ in range(300):
        command, *words = lines.random_line(random)
        flags = {setting.flag for setting in settings_of(all_settings()[command]).values()}
        given = {word for word in words if word.startswith("--")}
        assert given <= flags | {f"--{name}" for name in extras_of(all_settings()[command])}
