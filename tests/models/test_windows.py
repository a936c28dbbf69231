"""A model of few positions is read in windows that it has, unless longer ones were asked for."""

import json
import logging
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configurations import ARCHITECTURES, cases, tiny_config
from conftest import byte_tokenizer, must_refuse, run_command, tiny_model

from disp_llm.config.commands import BenchConfig, EvalConfig
from disp_llm.config.learning import TrainingConfig
from disp_llm.config.parts import PerplexityConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import apply_recipe, load_recipe
from disp_llm.config.recover import RecoverConfig
from disp_llm.evaluation.timing import Workload, fitted
from disp_llm.models.windows import positions_of, within_positions

FEW = tiny_config("gpt2")
FLAGS = ("--windows", 2, "--dtype", "float32", "--device", "cpu", "--json")
LEARNS = ("--steps", 2, "--calibration-sequences", 2)


def windows(config) -> tuple[int, ...]:
    return config.evaluation.context, config.training.length, config.scores.calibration_length


def test_default_windows_are_shortened_and_all_others_are_left(caplog):
    config = PruneConfig("x")
    assert windows(config) == (1024, 512, 512)
    assert windows(within_positions(config, FEW)) == (128, 128, 128)
    assert caplog.messages == [
        "the model has 128 positions, shortened to 128 were: `context` 1024, "
        "`calibration_length` 512, `length` 512"
    ]
    asked = replace(config, evaluation=PerplexityConfig(2048), training=TrainingConfig(64))
    assert windows(within_positions(asked, FEW)) == (2048, 64, 128)
    assert windows(within_positions(config, tiny_config("llama"), FEW)) == (
        128, 128, 128,
    )  # fmt: skip


@pytest.mark.parametrize("name", cases(ARCHITECTURES))
def test_every_architecture_says_how_many_tokens_it_reads(name):
    assert positions_of(tiny_config(name)) == 128


@pytest.mark.parametrize(
    ("kind", "tokens"), [("default", 128), ("linear", 512), ("dynamic", 512), ("yarn", 128)]
)
def test_stretched_positions_reach_as_many_times_as_far(kind, tokens):
    described = tiny_config("llama")
    described.rope_parameters = {"rope_type": kind, "rope_theta": 500.0, "factor": 4.0}
    assert positions_of(described) == tokens


def test_what_fits_is_left_without_a_word(caplog):
    for config in (EvalConfig("x", evaluation=PerplexityConfig(128)), RecoverConfig("x")):
        described = FEW if isinstance(config, EvalConfig) else tiny_config("gpt2", n_positions=1024)
        assert within_positions(config, described) == config
    assert not caplog.messages


def test_a_shipped_recipe_is_not_asked_for_and_a_file_is(tmp_path):
    paper = apply_recipe(PruneConfig("x", recipe="paper"), load_recipe("paper"))
    assert windows(paper)[1] == 2048
    assert windows(within_positions(paper, FEW)) == (128, 128, 512)
    own = tmp_path / "own.toml"
    own.write_text('base = "paper"\n')
    paper = replace(paper, recipe=str(own))
    assert windows(within_positions(paper, FEW)) == (128, 2048, 512)


def test_positions_that_are_none_limit_nothing():
    described = tiny_config("llama")
    for stated in (0, -1):
        described.max_position_embeddings = stated
        assert positions_of(described) is None
        config = BenchConfig("x", "y")
        assert within_positions(config, described) is config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of 128 learned positions: none follows them, so no longer window can be read."""
    folder = tmp_path_factory.mktemp("gpt2")
    tiny_model("gpt2").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def succeeded(*arguments: object) -> tuple[dict, list[str]]:
    """What a command printed, and its warnings about positions."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("disp_llm.models.windows").addHandler(handler)
    try:
        done = run_command(*arguments)
    finally:
        logging.getLogger("disp_llm.models.windows").removeHandler(handler)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), said


@pytest.fixture(scope="module")
def run(folder, text_file, tmp_path_factory) -> tuple[Path, dict, list[str]]:
    place = tmp_path_factory.mktemp("few") / "run"
    result, said = succeeded(
        "prune", folder, "--text", text_file, "--output-dir", place, *LEARNS, *FLAGS
    )
    return place, result, said


def test_prune_reads_as_much_as_there_is(run, folder, text_file):
    place, result, said = run
    assert said == [
        "the model has 128 positions, shortened to 128 were: `context` 1024, "
        "`calibration_length` 512, `length` 512"
    ]
    assert (
        result["original"]["measured"]["window"] == result["models"][0]["measured"]["window"] == 128
    )
    assert result["tokens_seen"] == 2 * 2 * 128 + 2 * 128
    stored = tomllib.loads((place / "config.toml").read_text())
    assert stored["training"]["length"] == 512
    assert stored["evaluation"]["context"] == 1024
    again, _ = succeeded(
        "prune", folder, "--text", text_file, "--output-dir", place, "--resume", *LEARNS, *FLAGS
    )
    assert again["models"] == result["models"]


def test_export_goes_on_from_it(run, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(run[0], place)
    made, said = succeeded("export", place, "--keep", 0.8, "--json")
    assert len(said) == 1
    assert made["models"][0]["measured"]["window"] == 128
    assert made["models"][0]["logit_errors"]["max_logit_error"] < 1e-4


def test_recover_and_eval_read_as_much(run, folder, text_file, tmp_path):
    place, result, _ = run
    trained, said = succeeded(
        "recover", place / "keep-0.5", "--text", text_file, "--output-dir", tmp_path / "recovered",
        "--tokens", 1024, *FLAGS,
    )  # fmt: skip
    assert len(said) == 1
    assert "`length` 512" in said[0]
    assert trained["tokens_seen"] == 1024
    assert trained["model"]["measured"]["window"] == 128
    stored = tomllib.loads((tmp_path / "recovered" / "config.toml").read_text())
    assert stored["training"]["length"] == 512
    measured, said = succeeded("eval", folder, "--text", text_file, *FLAGS)
    assert len(said) == 1
    assert measured["window"] == 128
    assert measured["perplexity"] == pytest.approx(
        result["original"]["measured"]["perplexity"], rel=0.1
    )


def test_compare_reads_as_much(folder, text_file, tmp_path):
    compared, said = succeeded(
        "compare", folder, "--methods", "magnitude", "fisher", "--keep", 0.5, "--text", text_file,
        "--rounds", 1, "--output-dir", tmp_path / "compared", "--calibration-sequences", 2, *FLAGS,
    )  # fmt: skip
    assert len(said) == 1
    assert [row["error"] for row in compared["rows"]] == [None, None]
    assert compared["asked"]["length"] == 512


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_what_is_timed_is_read_too(phase):
    model = tiny_model("opt")
    workload = fitted(Workload(phase, 512, 2), tiny_model("llama"), model)
    assert workload == Workload(phase, 127, 2)  # and one that is decoded
    model(torch.ones(1, workload.length + 1, dtype=torch.int64))
    assert fitted(Workload(phase, 100, 2), model).length == 100


@pytest.mark.parametrize("flag", ["--context", "--length", "--calibration-length"])
def test_what_was_asked_for_is_refused_and_not_shortened(folder, text_file, tmp_path, flag):
    done = must_refuse(
        "prune", folder, "--text", text_file, "--output-dir", tmp_path / "run", flag, 200
    )
    assert f"disp-llm: {flag}: 200 tokens, and the model has 128 positions; give at most 128" in (
        done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_a_latency_budget_is_timed_on_what_the_model_reads(folder, text_file, tmp_path):
    done = must_refuse(
        "prune", folder, "--text", text_file, "--output-dir", tmp_path / "run",
        "--budget", "latency", "--fit", 0.7, "--workload", "decode", *FLAGS,
    )  # fmt: skip
    assert "--workload-length: 513 tokens, and the model has 128 positions" in done.stderr
