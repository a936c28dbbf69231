"""Files of figures: whatever is wrong in one is a line that names it, or changes nothing."""

import json
import math
import shutil
from dataclasses import replace

import pytest
from conftest import run_command
from damage import BYTES, NESTED, names, outcome, wrongly_read

from disp_lab.results import ComparisonRow, OriginalResult, comparison_figures
from disp_llm.config.errors import InputError
from disp_llm.reporting.run_data import read_run
from disp_llm.runs.figures import run_figures
from disp_llm.runs.files import read_json
from disp_llm.runs.folder import Run
from disp_llm.runs.results import Perplexity, SizeResult, as_json, from_json
from disp_llm.runs.scores import Scores, TaskScore, TextScore

FREE = (
    "system",
    "files",
    "text_sha256",
    "eval_text_sha256",
    "teacher_revision",
    "perplexity_stderr",
    "seconds",
    "choosing_s",
    "measuring_original_s",
    "scoring_original_s",
    "keep_by_penalty",
    "date",
    "commit",
    "window_losses",
)
MEASURED = as_json(Perplexity(12.5, 0.5, 93, 32, 32))


def read_by(kind, path):
    return lambda: kind(read_json(path, "delete it"), str(path))


def test_result_of_prune(small_run, tmp_path):
    result = json.loads((small_run[0] / "result.json").read_text())
    path = tmp_path / "result.json"
    result.pop("files")
    result.pop("inputs")
    result["models"] = result["models"][:1]
    result["models"][0]["latency"] = {"work": "prefill", "measured_share": 0.5, "attempts": []}
    path.write_text(json.dumps(result))
    free = (*FREE, "processes", "base_model", "license", "latency", "prompt", "sample")
    free += ("max_logit_error", "max_logit_error_float32", "folder", "provenance")
    wrong, refused = wrongly_read(path, read_by(run_figures, path), (*free, *result["versions"]))
    assert not wrong
    assert refused > 300


def test_result_of_recover(small_run, tmp_path):
    result = json.loads((small_run[0] / "result.json").read_text())
    for key in ("original", "models", "files", "inputs"):
        result.pop(key)
    sizes = {"keep": 0.5, "keep_total": 0.6, "parameters": 9, "block_parameters": 8, "bytes": 36}
    result |= {"before": {"measured": MEASURED}, "teacher": MEASURED}
    result["model"] = {"measured": MEASURED, **sizes, "folder": "run/model"}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    free = (*FREE, "processes", "base_model", "license", "teacher", "measuring_original_s")
    wrong, refused = wrongly_read(path, read_by(run_figures, path), (*free, *result["versions"]))
    assert not wrong
    assert refused > 200


def scores(dense: bool) -> Scores:
    """On a suite of a text and a task; with `dense`, against an original's."""
    text = TextScore(9.5, 62, 32, "t", "1", "2", [2.0, 2.5], 0.5)
    task = TaskScore(0.25, 4, "acc", 0.25, "3", "1101", acc=0.75)
    if not dense:
        return Scores("s", {"A": text}, {"T": task})
    text = replace(text, original=8.0, ratio=1.2, ratio_stderr=0.1)
    task = replace(task, original=1.0, kept=0.6, kept_stderr=0.1)
    return Scores("s", {"A": text}, {"T": task}, 1.2, 0.1, 0.6, 0.1)


def test_comparison_on_a_suite(tmp_path):
    row = ComparisonRow(
        "learned", 0.5, 12.5, 0.5, 0.5, 80, 90, 0.5, 960, 1.5, scores=scores(dense=True)
    )
    measured = Perplexity(12.5, 0.5, 93, 32, 32)
    result = {
        "asked": {"model": "m", "keep": [0.5]},
        "rows": [as_json(row)],
        "dense": as_json(OriginalResult(measured, 99, 88, scores(dense=False))),
        "source": {"model": "m", "revision": "r", "text": "t", "eval_text": "e"},
    }
    assert comparison_figures(result).rows == [row]
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(result))
    free = (*FREE, "ratio_stderr", "kept_stderr", "general_ratio_stderr")
    wrong, refused = wrongly_read(path, read_by(comparison_figures, path), free)
    # A row may fail, and less may be kept than by chance.
    kept = ("rows.0.scores.kept", "rows.0.scores.tasks.T.kept")
    may = {f"{name} = {value}" for name in kept for value in (-3, -0.5)}
    assert set(wrong) == {*may, "rows.0 dropped"}
    assert refused > 200


def test_losses_of_windows_are_those_of_the_perplexity():
    whole = {"perplexity": 10.0, "perplexity_stderr": 0.5, "tokens": 9, "window": 4, "stride": 4}
    losses = {"window_losses": [math.log(5), math.log(20)]}
    assert from_json(Perplexity, whole | losses, "f").window_losses
    for wrong in ([math.log(5)], [math.log(5), math.log(21)]):
        with pytest.raises(InputError, match="window_losses of another perplexity"):
            from_json(Perplexity, whole | {"window_losses": wrong}, "f")
    with pytest.raises(InputError, match="window_losses of another perplexity"):
        from_json(Perplexity, whole | losses | {"window_tokens": [3, 6]}, "f")
    with pytest.raises(InputError, match="as many window_tokens"):
        from_json(Perplexity, whole | losses | {"window_tokens": [9]}, "f")


def test_comparison(tmp_path):
    speed = {"prefill_ms": 9.0, "prefill_speedup": 1.5, "decode_ms": 2.0, "decode_speedup": 1.2}
    row = ComparisonRow("learned", 0.5, 12.5, 0.5, 0.5, 80, 90, 0.5, 960, 1.5, speed=speed)
    failed = ComparisonRow("flap", 0.5, error="cannot")
    result = {
        "asked": {"model": "m", "keep": [0.5], "steps": 3},
        "rows": [as_json(row), as_json(failed)],
        "dense": {"measured": MEASURED, "parameters": 99, "block_parameters": 88},
        "source": {
            "model": "m",
            "revision": "r",
            "text": "t",
            "eval_text": "e",
            "text_sha256": "t",
            "eval_text_sha256": "e",
        },
        "hardware": {"cpu": "c", "threads": 1, "system": "s"},
        "versions": {"torch": "2"},
    }
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(result))
    free = (*FREE, "hardware", "versions", "torch")
    wrong, refused = wrongly_read(path, read_by(comparison_figures, path), free)
    # A row that failed needs no figures, and another one may have failed.
    may = {"rows.0.error = 'x'", "rows.0 dropped", "rows.1 dropped", "rows = []"}
    may |= {"rows.0.speed dropped"}
    assert {how for how in wrong if not how.startswith("rows.1.")} <= may
    assert refused > 200


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
        assert len(found.metrics) < 2
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
    done = run_command("report", run)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(run) in done.stderr


def test_a_value_is_named_by_its_place_in_the_file(small_run):
    size = small_run[1]["models"][0]
    measured = size["measured"] | {"perplexity": "low"}
    found = outcome(lambda: from_json(SizeResult, size | {"measured": measured}, "f"))
    assert found.what == "measured.perplexity: expected float, got str"
    found = outcome(lambda: from_json(SizeResult, size | {"share_asked": "half"}, "f"))
    assert found.what == "share_asked: expected float, got str"
