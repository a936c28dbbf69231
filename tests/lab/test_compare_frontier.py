"""`compare --frontier`: what it measures, what it leaves out, and how it goes on."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from conftest import must_refuse, must_run, run_command, tiny_model
from small import instead

from disp_lab.comparison import rows as comparison_rows
from disp_lab.comparison.table_rows import RowKey, missing, rows_asked
from disp_lab.settings import CompareConfig
from disp_llm.evaluation import timing
from disp_llm.masks.prunable import PrunableModel


def counted_time(model: torch.nn.Module, tokens: torch.Tensor, cache: object) -> float:
    """A clock that counts parameters."""
    return 1e-6 * sum(parameter.numel() for parameter in model.parameters())


def packed(target: PrunableModel, kind: str) -> tuple[PrunableModel, int]:
    """In place of torchao: what is half as large, with one layer left out of int4."""
    made = tiny_model("llama").to(torch.bfloat16)
    return PrunableModel(made, target.family), int(kind == "int4")


@pytest.fixture
def command(llama_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(timing, "_timed", counted_time)
    short = tuple(replace(one, length=16) for one in timing.USUAL)
    monkeypatch.setattr(timing, "USUAL", short)
    return [
        "compare", llama_folder, "--methods", "magnitude", "depth", "magnitude_2_4",
        "--keep", 0.5, "--frontier", "--quantise", "magnitude", "--align", 4, "--rounds", 1,
        "--text", text_file, "--output-dir", tmp_path / "out", "--context", 32, "--windows", 2,
        "--calibration-sequences", 2, "--calibration-length", 32, "--dtype", "float32", "--json",
    ]  # fmt: skip


def test_every_row_has_its_time_and_its_bytes(command, tmp_path, monkeypatch):
    """Where quantising fails, the other rows stay, and it is tried again."""
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    done = must_run(*command)
    result = json.loads(done.stdout)
    rows = {(row["method"], row.get("weights", "")): row for row in result["rows"]}
    assert list(rows) == [
        ("original", ""), ("original", "int8"), ("original", "int4"),
        ("magnitude", ""), ("magnitude", "int8"), ("magnitude", "int4"),
        ("depth", ""), ("magnitude_2_4", ""),
    ]  # fmt: skip
    for (_, weights), row in rows.items():
        assert (row["error"] is None) == (not weights)
        assert not weights or "needs torchao" in row["error"]
    original, pruned = rows["original", ""], rows["magnitude", ""]
    assert original["speedup"] == {"prefill": 1, "decode": 1}
    assert original["perplexity"] == result["original"]["measured"]["perplexity"]
    share = pruned["parameters"] / original["parameters"]
    assert pruned["speedup"]["prefill"] == pytest.approx(1 / share)
    assert original["bytes"] == 4 * original["parameters"]
    folder = tmp_path / "out" / "magnitude" / "keep-0.5"
    assert 0 <= (folder / "model.safetensors").stat().st_size - pruned["bytes"] < 20_000
    assert pruned["kv_cache_bytes"] < original["kv_cache_bytes"]  # heads have gone
    assert rows["depth", ""]["kv_cache_bytes"] < original["kv_cache_bytes"]
    sparse = rows["magnitude_2_4", ""]
    assert "zeros" in sparse["note"]
    assert "bytes" not in sparse
    assert "speedup" not in sparse
    assert f"magnitude_2_4 keep 0.5 ({sparse['note']})" in done.stderr
    table = (tmp_path / "out" / "compare.md").read_text()
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "![frontier.png](frontier.png)" in table
    must_run("verify", tmp_path / "out")

    monkeypatch.setattr(comparison_rows, "quantised", packed)
    again = must_run(*command)
    assert "depth: " not in again.stderr  # which is there
    found = json.loads(again.stdout)["rows"]
    assert [(row["method"], row.get("weights", "")) for row in found] == list(rows)
    assert found[0] == original
    assert all(row.get("error") is None for row in found)
    assert found[1]["bytes"] < original["bytes"]
    assert [row.get("note", "") for row in found[1:3]] == ["", "1 layers stay as they are"]
    assert original["kv_cache_bytes"] == 127 * 3 * 2 * 16 * 4  # tokens, blocks, K and V, width
    assert found[4]["perplexity"] == found[1]["perplexity"] != pruned["perplexity"]  # of `packed`


def test_a_row_is_written_before_the_next_one_is_made(command, tmp_path, monkeypatch):
    """A failure that nobody foresaw loses the row that it is in, and no other."""

    def broken(*asked):
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(comparison_rows, "quantised", broken)
    done = run_command(*command)
    assert done.returncode == 1
    (row,) = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert (row["method"], row["error"]) == ("original", None)


def test_ours_by_time_is_as_fast_as_was_asked_for(command):
    flags = ["--methods", "latency", "--fit", 0.8, "--steps", 2, "--length", 32]
    done = must_run(*instead(command, *flags, "--quantise", "latency"))
    row = next(row for row in json.loads(done.stdout)["rows"] if row["method"] == "latency")
    assert row["keep_asked"] is None
    assert row["target"] == 0.8
    assert row["speedup"]["prefill"] == pytest.approx(1 / 0.8, rel=0.05)
    flags[3:4] = [0.8, 0.6]
    done = must_refuse(*instead(command, *flags, "--quantise", "latency"))
    assert "compares something else (target: [0.8])" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fit", "0.8"], "--fit: is of the method latency; leave it out, or add"),
        (["--methods", "latency"], "--methods: latency has no sizes; give --fit"),
        (["--frontier", "--rounds", "0"], "--frontier: has no times without rounds"),
        (["--quantise", "depth"], "--quantise: 'depth' writes no model folder"),
        (["--align", "0"], "--align: out of range; give a whole number of at least 1"),
    ],
)
def test_what_no_comparison_can_use_is_refused(flags, said, tmp_path):
    methods = [] if "--methods" in flags else ["--methods", "flap"]
    done = must_refuse(
        "compare", "smollm2-135m", "--output-dir", tmp_path / "out", *methods, *flags
    )
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_rows_that_are_wanted_and_not_there():
    config = CompareConfig("m", ("flap", "latency"), (0.8, 0.5), True, (0.7,), ("flap",))
    assert rows_asked(config, "wanda") == []
    assert rows_asked(config, "original") == [RowKey(1.0, weights=w) for w in ("", "int8", "int4")]
    assert rows_asked(config, "latency") == [RowKey(target=0.7)]
    flap = rows_asked(config, "flap")
    assert len(flap) == 6

    def row(place: RowKey, error: str | None = None) -> dict:
        return {"method": "flap", "error": error} | place.fields

    assert missing(config, "flap", []) == flap
    assert missing(config, "flap", [row(flap[0])]) == flap[1:]
    # One size works, so the other cannot be had; a library may have been missing.
    rows = [row(flap[0]), row(flap[1], "no torchao"), row(flap[2]), row(flap[3], "not this size")]
    assert missing(config, "flap", rows) == [flap[1], *flap[4:]]
    assert missing(config, "flap", [row(place, "fails") for place in flap]) == flap
