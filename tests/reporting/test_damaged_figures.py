"""Files of figures: whatever is wrong in one is a line that names it, or changes nothing."""

import shutil

import pytest
from conftest import must_refuse
from damage import BYTES, NESTED, names, outcome

from disp_llm.config.schema import as_type
from disp_llm.reporting.run_data import read_run
from disp_llm.runs.folder import Run
from disp_llm.runs.results import SizeResult


@pytest.fixture
def run(small_run, tmp_path):
    """A run folder of one's own."""
    folder = tmp_path / "run"
    shutil.copytree(small_run[0], folder)
    return folder


def lines(*steps: str) -> str:
    return "".join(f"{step}\n" for step in steps)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda one, two: lines(one, two[:9], two), "line 2 is damaged"),
        (lambda one, two: lines(one, "[" * 99_999, two), "line 2 is damaged"),
        (lambda one, two: lines(one, two[:9]), "line 2 is damaged"),  # whole, with its line break
        (lambda one, two: lines(one, "null"), "line 2: expected object, got null"),
        (lambda one, two: lines(one, '{"step": 2}'), "line 2: object missing required field"),
        (lambda one, two: lines(one, two.replace('"step": 2', '"step": "2"')), "line 2.step: "),
        (lambda one, two: lines(one, '{"step": 2, "tokens": 9, "loss": NaN}'), "line 2.loss: "),
        (lambda one, two: lines(one) + two[:9], None),  # a kill within the last line
        (lambda one, two: "", None),
    ],
)
def test_log_of_steps(run, damage, said):
    path = run / "metrics.jsonl"
    path.write_text(damage(*path.read_text().splitlines()[:2]))
    found = outcome(lambda: read_run(Run(run, anyway=True)))
    if said is None:
        assert len(found.steps) < 2
    else:
        assert names(found, path)
        assert said in found.what
    path.write_bytes(b"\xff\n")
    assert names(outcome(lambda: read_run(Run(run, anyway=True))), path)


@pytest.mark.parametrize("how", [*BYTES, "nested"])
@pytest.mark.parametrize("name", ["config.toml", "selection.safetensors"])
def test_other_files_of_a_page(run, name, how):
    path = run / name
    path.write_bytes(NESTED if how == "nested" else BYTES[how](path.read_bytes()))
    done = must_refuse("report", run)
    assert len(done.stderr.splitlines()) == 1
    assert str(run) in done.stderr


def size_of(values: dict) -> SizeResult:
    return as_type(values, SizeResult, field="f", hint="")


def test_a_value_is_named_by_its_place_in_the_file(small_run):
    size = small_run[1]["models"][0]
    measured = size["measured"] | {"perplexity": "low"}
    found = outcome(lambda: size_of(size | {"measured": measured}))
    assert found.what == "measured.perplexity: expected float, got str"
    found = outcome(lambda: size_of(size | {"share_asked": "half"}))
    assert found.what == "share_asked: expected float, got str"
