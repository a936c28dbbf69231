"""What is committed of a comparison, and what the documents make of its frontier."""

import json
from pathlib import Path

import pytest

from disp_llm.runs.results import Perplexity, as_json
from disp_llm.runs.rows import ComparisonRow, OriginalResult

ROOT = Path(__file__).parent.parent


@pytest.fixture
def experiments(monkeypatch):
    """The scripts, which import each other by name."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import frontier_tables
    import run

    return run, frontier_tables


def row(method: str, perplexity: float, time: float, error: str | None = None) -> dict:
    speed = {f"{p}_{name}": 1 / time for p in ("prefill", "decode") for name in ("ms", "speedup")}
    made = ComparisonRow(
        method, 0.5, perplexity, 0.5, 0.5, 80, 90, 0.5, 960, 1.5, error, speed,
        bytes=int(1e8 * time), kv_cache_bytes=10,
    )  # fmt: skip
    return as_json(made)


@pytest.fixture
def compared(tmp_path) -> dict:
    """What `compare.json` holds on a machine that has the model in a folder."""
    model = tmp_path / "some" / "model"
    model.mkdir(parents=True)
    rows = [row("dense", 20.0, 1.0), row("learned", 50.0, 0.7), row("flap", 60.0, 0.8)]
    rows += [row("depth", 70.0, 0.6), row("greedy", 40.0, 0.9)]
    failed = as_json(ComparisonRow("mpo", 0.5, error=f"{model} is not there"))
    original = OriginalResult(Perplexity(20.0, 0.5, 93, 32, 32), 99, 88)
    asked = {"model": str(model), "keep": [0.5], "steps": 1, "length": 8, "batch": 1, "align": 32}
    return {
        "asked": asked | {"text": {"text": [str(model / "secret.txt")]}},
        "rows": [*rows, failed],
        "dense": as_json(original),
        "source": {"model": str(model), "revision": "r", "text": "t", "eval_text": "e"},
        "hardware": {"cpu": "a CPU", "threads": 1, "system": "x"},
        "versions": {"torch": "2"},
    }


def test_nothing_that_is_committed_names_a_place_of_the_machine(experiments, compared, tmp_path):
    run, _ = experiments
    kept = run.of_comparison(compared, "disp-llm compare m")
    assert kept["asked"]["model"] == kept["source"]["model"] == "some/model"
    assert str(tmp_path) not in json.dumps(kept)


def test_a_comparison_is_whole_when_all_that_could_be_quantised_is(experiments, compared):
    run, _ = experiments
    experiment = {"command": "compare", "common": "m", "texts": {}}
    variant = {"name": "v", "flags": "--frontier"}
    result = compared | {"command": "disp-llm compare m --frontier"}
    assert run.is_whole(result, variant, experiment)
    assert not run.is_whole(result, variant | {"flags": ""}, experiment)
    waiting = as_json(ComparisonRow("dense", 1.0, error="no torchao", weights="int8"))
    result["rows"] = [*result["rows"], waiting]
    assert not run.is_whole(result, variant, experiment)


def test_choices_are_those_of_the_results(experiments, compared, tmp_path, monkeypatch):
    run, tables = experiments
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "frontier.json")
    assert "not been run yet" in "\n".join(tables.choices())
    assert tables.readme_picture() == []
    kept = {"name": "v", "command": "c"} | run.of_comparison(compared, "disp-llm compare m")
    tables.RESULTS.write_text(json.dumps([kept]))
    text = "\n".join(tables.choices())
    assert (
        "| a prompt is to take less time | dense: 20.00 at 1.00; greedy keep 0.5: 40.00 at 0.90; "
        "learned keep 0.5: 50.00 at 0.70; depth keep 0.5: 70.00 at 0.60 |" in text
    )
    ours = "learned keep 0.5: 50.00"
    assert f"| flap keep 0.5 | 60.00 | 0.80 | {ours} | 0.80 | {ours} |" in text
    assert "| depth keep 0.5 | 70.00 | 0.60 | none is as fast | 0.60 | none is as fast |" in text
    assert f"| greedy keep 0.5 | 40.00 | 0.90 | {ours}, behind | 0.90 | {ours}, behind |" in text
    assert "on the front: learned keep 0.5 0.70" in text
    assert "![Perplexity over prefill, decode and memory](docs/frontier.png)" in (
        tables.readme_picture()
    )
    section = "\n".join(tables.comparison_section(kept))
    assert "| flap keep 0.5 | 60.00 ± 0.50 | 0.80 | 0.80 | 80.0 | 0.0 |  |" in section
