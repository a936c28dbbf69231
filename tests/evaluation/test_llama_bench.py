"""Times in llama.cpp: whatever llama-bench says of the files is what a budget meets.

The program here is a script whose times follow from the size of the file that it is given.
"""

import json

import pytest
from conftest import byte_tokenizer, tiny_model

import disp_llm
from disp_llm.config.engines import DEMANDS
from disp_llm.config.errors import InputError
from disp_llm.evaluation import latency
from disp_llm.evaluation.latency import SHAPES, TOLERANCE, shapes_with
from disp_llm.evaluation.timing import Stopwatch
from disp_llm.runs.progress import silent

SCRIPT = """#!/bin/sh
echo "$@" >> "$ASKED"
size=$(stat -c %s "$2")
echo "[{\\"samples_ns\\": [$((size * 1000 - 5000000))]}]"
"""
"""Of a machine that takes a microsecond a byte, but for 5,000 of them."""

ASKED = {
    "text": "A model may be pruned for a program that is to run it. " * 40,
    "method": "fisher", "calibration_sequences": 1, "calibration_length": 16, "context": 16,
    "windows": 1, "progress": silent, "for_": "llama.cpp", "align": 1,
}  # fmt: skip
TIME = {"budget": "latency", "workload_length": 24}


def pruned(tmp_path, budget=TIME, **more):
    model = tiny_model("llama", num_hidden_layers=4, intermediate_size=256)
    return disp_llm.prune(
        model, byte_tokenizer(), output_dir=tmp_path / "run", **(ASKED | budget | more)
    )


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A directory on the PATH, and the arguments that the program there was called with."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def install(script: str):
        program = tmp_path / "bin" / "llama-bench"
        program.write_text(script)
        program.chmod(0o755)
        return tmp_path / "asked"

    return install


def test_a_budget_is_met_in_llama_cpp(bench, tmp_path):
    asked = bench(SCRIPT)
    result = pruned(tmp_path, fit=0.7, workload=["prefill", "decode"], rounds=2)
    (size,) = result.figures["models"]
    assert size["latency"]["program"] == size["timed_in"] == "llama.cpp"
    assert size["latency"]["measured_share"] == pytest.approx(0.7, rel=TOLERANCE)
    calls = asked.read_text().splitlines()
    assert all(" -r 4 " in call or " -r 1 " in call for call in calls)
    timed = {call.split(" -n ")[1] for call in calls}
    assert {"0 -p 24 -d 0", "16 -p 0 -d 24"} <= timed
    assert size["speed"]["prefill_speedup"] == pytest.approx(1 / 0.7, rel=0.05)
    (cached, _) = (json.loads(path.read_text()) for path in latency.cache_folder().glob("*.json"))
    assert len(cached["shares"]) == len(shapes_with(DEMANDS["llama.cpp"].sites)) < len(SHAPES)


def test_a_program_that_fails_says_so_in_one_line(bench, tmp_path):
    bench("#!/bin/sh\necho 'unknown model architecture' >&2\nexit 1\n")
    with pytest.raises(InputError, match=r"llama-bench .*: unknown model architecture") as caught:
        pruned(tmp_path, fit=0.7)
    assert caught.value.field == "budget"


def test_several_sequences_are_refused(bench, tmp_path):
    bench(SCRIPT)
    with pytest.raises(InputError, match="llama-bench times one sequence"):
        pruned(tmp_path, fit=0.7, workload_batch=4)


def test_without_the_program_it_is_named_before_anything_is_learned(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="llama-bench, which is not on the PATH"):
        pruned(tmp_path, fit=0.7)
    assert not (tmp_path / "run" / "selection.safetensors").exists()


def test_without_the_program_sizes_are_timed_in_transformers(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = pruned(tmp_path, budget={}, keep=0.6, rounds=1)
    assert result.figures["models"][0].get("timed_in", "transformers") == "transformers"


def test_what_a_program_cannot_run_is_whole_in_every_shape():
    assert shapes_with(Stopwatch.sites) == list(SHAPES)
    few = shapes_with(("mlp_mid",))
    assert len(few) == len(set(few)) < len(SHAPES)
    place = Stopwatch.sites.index("mlp_mid")
    assert all(share == 1.0 for shape in few for at, share in enumerate(shape) if at != place)
    assert {shape[place] for shape in few} == {shape[place] for shape in SHAPES}
    assert latency.ROUNDS > 1
