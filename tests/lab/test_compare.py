"""Other methods: each follows its formula, and one command puts them side by side."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from configurations import DENSE_KINDS, cases
from conftest import byte_tokenizer, must_refuse, must_run, problem_of, tiny_model
from small import instead

from disp_lab.names import IN_TIME
from disp_lab.parts.activations import input_moments
from disp_lab.variants import compared_methods
from disp_llm.compact.modeling_disp_llm import is_conv1d, linear_at
from disp_llm.data.randomness import random_stream
from disp_llm.evaluation import timing
from disp_llm.evaluation.suites import Scoreboard
from disp_llm.exporter.cutting import compact_model, fold_into_weights
from disp_llm.masks.budget import project
from disp_llm.masks.masking import masked
from disp_llm.masks.selection import Masks
from disp_llm.methods import method_named
from disp_llm.models.architectures import FAMILIES
from disp_llm.runs.files import write_checked_json
from disp_llm.training.problem import PruningProblem, calibration_windows

WITH_HEADS = [name for name in DENSE_KINDS if FAMILIES[name].can_lose_heads and name != "bamba"]
"""Bamba's state spaces keep all heads, so that no channel is left at the size of the tests."""


def parts_of(problem: PruningProblem, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    return problem.budget.layout.named(flat)


def test_moments_are_those_of_what_enters_the_layer(tmp_path, text_file):
    problem = problem_of("llama", text_file.read_text(), tmp_path, heads=True)
    windows = problem.corpus.draw(4, 32, random_stream("calibration", problem.seed))
    seen = []
    layer = problem.dense.model.model.layers[1].mlp.down_proj
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    problem.dense.model(windows.tokens)
    handle.remove()
    inputs = seen[0].flatten(0, 1).double()
    _, found = input_moments(problem)[1]
    torch.testing.assert_close(found.mean, inputs.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.variance, inputs.var(0, correction=0), rtol=1e-3, atol=1e-6)


def test_flap_ranks_by_fluctuation_and_standardises(tmp_path, text_file):
    problem = problem_of("llama", text_file.read_text(), tmp_path, heads=True)
    parts = parts_of(problem, method_named("flap").choose(problem).importance)
    middle = parts["layers.2.mlp_mid"]
    assert float(middle.mean()) == pytest.approx(0, abs=1e-5)
    assert float(middle.std()) == pytest.approx(1, abs=1e-4)
    _, found = input_moments(problem)[2]
    weight = problem.dense.model.model.layers[2].mlp.down_proj.weight
    fluctuation = found.variance * weight.double().square().sum(0)
    assert torch.equal(middle.argsort(), fluctuation.argsort())


def test_flap_squares_the_columns_of_heads(tmp_path, text_file):
    problem = problem_of("llama", text_file.read_text(), tmp_path, heads=True)
    heads = parts_of(problem, method_named("flap").choose(problem).importance)["layers.2.heads"]
    found, _ = input_moments(problem)[2]
    weight = problem.dense.model.model.layers[2].self_attn.o_proj.weight
    columns = (found.variance * weight.double().square().sum(0)).square()
    standardised = (columns - columns.mean()) / columns.std()
    torch.testing.assert_close(
        heads.double(), standardised.view(len(heads), -1).mean(1), rtol=1e-4, atol=1e-5
    )


def test_flap_bias_restores_the_mean_output(tmp_path, text_file):
    """A layer whose dropped inputs never vary gives the same output as before."""
    problem = problem_of("llama", text_file.read_text(), tmp_path, heads=True)
    selection = method_named("flap").choose(problem)
    kept = project(selection.importance, problem.budget, 0.6).kept
    masks = Masks(problem.budget.layout, kept, selection)
    down = problem.dense.model.model.layers[0].mlp.down_proj
    kept_channels = parts_of(problem, kept)["layers.0.mlp_mid"]
    _, found = input_moments(problem)[0]
    wanted = down(found.mean.float())
    with fold_into_weights(problem.dense, masks):
        got = down(torch.where(kept_channels, found.mean.float(), 0.0))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert down.bias is None


@pytest.mark.parametrize("method", ["flap", "wanda", "taylor"])
@pytest.mark.parametrize("model_type", cases(WITH_HEADS))
def test_exported_equals_masked_for_methods_with_heads_and_biases(
    tmp_path, text_file, model_type, method
):
    problem = problem_of(model_type, text_file.read_text(), tmp_path, heads=True)
    selection = method_named(method).choose(problem)
    kept = project(selection.importance, problem.budget, 0.6).kept | problem.budget.never_pruned
    masks = Masks(problem.budget.layout, kept, selection)
    tokens = torch.randint(4, 320, (2, 19))
    with (
        fold_into_weights(problem.dense, masks),
        masked(problem.dense) as masking,
    ):
        masking.set(kept.float())
        wanted = problem.dense.model(tokens).logits
        compact = compact_model(problem.dense, masks)
    got = compact(tokens).logits
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    block = compact.base_model.get_submodule(problem.dense.family.blocks)[0]
    if method == "flap":
        assert linear_at(block, problem.dense.family.mlp.writes).bias is not None


def test_wanda_and_taylor_take_the_same_share_of_every_block(tmp_path, text_file):
    problem = replace(
        problem_of("llama", text_file.read_text(), tmp_path, heads=True), keeps=(0.6,)
    )
    for method in ("wanda", "taylor"):
        kept = project(method_named(method).choose(problem).importance, problem.budget, 0.6).kept
        for site in ("mlp_mid", "heads"):
            parts = [part for name, part in parts_of(problem, kept).items() if site in name]
            counts = [int(part.sum()) for part in parts]
            assert max(counts) - min(counts) <= 1, (method, site, counts)


def test_wanda_sees_what_pruned_blocks_give(tmp_path, text_file):
    problem = replace(
        problem_of("llama", text_file.read_text(), tmp_path, heads=True), keeps=(0.5,)
    )
    layout = problem.budget.layout
    ranks = method_named("wanda").choose(problem).importance
    first = (ranks >= 1).float()
    for part in layout.split(first)[6:]:  # blocks behind the first are whole
        part.fill_(1.0)
    down = problem.dense.model.model.layers[1].mlp.down_proj
    windows, seen = calibration_windows(problem).tokens, []
    handle = down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with masked(problem.dense) as masking:
        for mask in (first, torch.ones_like(first)):
            masking.set(mask)
            problem.dense.model(windows)
    handle.remove()
    behind, dense = (
        inputs.flatten(0, 1).double().norm(dim=0) * down.weight.double().abs().sum(0)
        for inputs in seen
    )
    order = parts_of(problem, ranks)["layers.1.mlp_mid"].argsort(descending=True)
    assert torch.equal(order, behind.argsort(descending=True))
    assert not torch.equal(order, dense.argsort(descending=True))


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt2"])
def test_taylor_sums_changes_of_the_loss_over_a_channel_s_weights(tmp_path, text_file, model_type):
    problem = replace(problem_of(model_type, text_file.read_text(), tmp_path), keeps=(0.7,))
    ranks = parts_of(problem, method_named("taylor").choose(problem).importance)["layers.0.mlp_mid"]
    windows = calibration_windows(problem).tokens
    mlp = problem.dense.family.mlp
    block = problem.dense.blocks[0]
    layers = [linear_at(block, path) for path in (*mlp.reads, mlp.writes)]
    assert not any(layer.weight.requires_grad for layer in layers)
    assert all(layer.weight.grad is None for layer in layers)
    for layer in layers:
        layer.weight.requires_grad_(True)
    for window in windows:
        problem.dense.model(window[None], labels=window[None]).loss.backward()
    changes = [(layer.weight * layer.weight.grad).abs() for layer in layers]
    *reads, write = (
        change.T if is_conv1d(layer) else change
        for layer, change in zip(layers, changes, strict=True)
    )
    wanted = write.sum(0) + sum(read.sum(1).view(mlp.fused, -1).sum(0) for read in reads)
    assert torch.equal(ranks.argsort(descending=True), wanted.argsort(descending=True))


@pytest.fixture(scope="module")
def comparison(text_file, tmp_path_factory):
    """Every method at two sizes: 22 runs, so of two blocks, and timed on 16 tokens."""
    root = tmp_path_factory.mktemp("compare")
    model, folder = root / "llama", root / "all"
    tiny_model("llama", num_hidden_layers=2).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    command = [
        "compare", model, "--keep", 0.8, 0.5, "--steps", 4, "--text", text_file,
        "--output-dir", folder, "--context", 32, "--windows", 4, "--length", 64,
        "--rounds", 1, "--calibration-sequences", 4, "--calibration-length", 64,
        "--dtype", "float32", "--json",
    ]  # fmt: skip
    short = tuple(replace(one, length=16) for one in timing.USUAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "USUAL", short)
        done = must_run(*command)
        yield folder, command, json.loads(done.stdout)


def test_every_method_has_a_row_a_size(comparison):
    folder, _, result = comparison
    names = [name for name in compared_methods() if name != IN_TIME]  # no `target` was asked for
    assert {(row["method"], row["keep_asked"]) for row in result["rows"]} == {
        (method, keep) for method in names for keep in (0.8, 0.5)
    }
    for row in result["rows"]:
        if row["method"].endswith("2_4") and row["keep_asked"] == 0.8:
            assert "half" in row["error"]
            assert "perplexity" not in row
            continue
        if row["method"] == "reap":
            assert "llama has no experts" in row["error"]
            continue
        assert row["error"] is None, row
        assert row["keep"] <= row["keep_asked"] or row["method"].endswith("2_4")
        assert row["perplexity"] > 1
        assert row["parameters"] > row["block_parameters"]
        if row["method"].endswith("2_4") or row["method"] == "mpo":  # runs as the original does
            assert row["note"]
            assert not {"prefill_ms", "speedup"} & row.keys()
            assert "bytes" not in row
            continue
        assert row["speed"]["prefill_ms"] > 0
        assert row["speedup"]["decode"] == row["speed"]["decode_speedup"]
        assert row["bytes"] > 0
        assert row["kv_cache_bytes"] > 0
        assert len(row["window_losses"]) == 4
    rows = {(row["method"], row["keep_asked"]): row for row in result["rows"]}
    assert rows["magnitude", 0.5]["flops"] == pytest.approx(rows["magnitude", 0.5]["keep"])
    assert rows["slicegpt", 0.5]["flops"] == pytest.approx(rows["slicegpt", 0.5]["keep"], rel=0.05)
    assert rows["magnitude_2_4", 0.5]["tokens_seen"] == 0 < rows["greedy", 0.5]["tokens_seen"]
    ours = {row["keep_asked"]: row for row in result["rows"] if row["method"] == "learned"}
    for row in (row for row in result["rows"] if row["error"] is None):
        reference = ours[row["keep_asked"]]
        assert row["paired_with"] == "learned"
        quotient = row["perplexity"] / reference["perplexity"]
        assert row["paired_ratio"] == pytest.approx(quotient, rel=1e-5)
        assert ("paired_ratio_stderr" in row) == (row is not reference)
    assert result["original"]["measured"]["perplexity"] > 1
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "compare.md").read_text()
    assert all(f"| {method} |" in table for method in names)
    assert "paired ratio: perplexity / that of learned at 0.8, learned at 0.5, over" in table
    flap = transformers.AutoModelForCausalLM.from_pretrained(folder / "flap" / "keep-0.5")
    assert flap.model.layers[0].mlp.down_proj.bias is not None


def test_the_original_is_measured_once(comparison):
    folder, _, result = comparison
    runs = [json.loads(file.read_text()) for file in folder.glob("**/result.json")]
    assert len(runs) > 5
    for run in runs:
        assert (
            run["original"]["measured"]["perplexity"]
            == result["original"]["measured"]["perplexity"]
        )
        assert "measuring_original_s" not in run


SPEEDS = ("prefill", "decode")


def _without_times(rows: list[dict]) -> list[dict]:
    rows = [
        {k: v for k, v in row.items() if not k.startswith((*SPEEDS, "speed", "provenance"))}
        for row in rows
    ]
    return sorted(rows, key=lambda row: (row["method"], row["keep_asked"]))


def test_going_on_makes_only_what_is_missing(comparison):
    folder, command, before = comparison
    rows = [row for row in before["rows"] if row["method"] != "wanda"]
    write_checked_json(folder / "compare.json", before | {"rows": rows})
    done = must_run(*command)
    again = json.loads(done.stdout)["rows"]
    for now, was in zip(again, before["rows"], strict=True):
        assert now["provenance"]["seed"] == 0
        assert (now["provenance"] == was["provenance"]) == (now["method"] not in ("wanda", "reap"))
    assert [row["method"] for row in again] == [row["method"] for row in before["rows"]]
    assert _without_times(again) == _without_times(before["rows"])
    for flags in (["--keep", "0.7"], ["--windows", "1"], ["--length", "16"]):
        other = must_refuse(*instead(command, *flags))
        assert "compares something else" in other.stderr


def test_a_method_that_fails_leaves_rows_that_say_why(text_file, tmp_path):
    model = tmp_path / "neox"
    tiny_model("gpt_neox").save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    done = must_run(
        "compare", model, "--methods", "flap", "random", "--keep", 0.8, "--text", text_file,
        "--output-dir", tmp_path / "out", "--context", 32, "--windows", 2, "--json",
    )  # fmt: skip
    flap, random = json.loads(done.stdout)["rows"]
    assert "cannot lose whole heads" in flap["error"]
    assert "perplexity" not in flap
    assert random["error"] is None


@pytest.fixture
def suite(tmp_path, text_file, questions):
    """A text and a task; random models are right by chance, so chance is set below that."""
    path = tmp_path / "mine.toml"
    path.write_text(
        f"context = 32\nwindows = 4\n[texts.A]\nfiles = ['{text_file}']\n"
        f"[tasks.arc_easy]\nmetric = 'acc'\nchance = 0.01\ndata = '{questions.name}'\n"
    )
    return path


@pytest.mark.usefixtures("index_of_some_tasks")
def test_every_row_is_scored_on_a_suite(llama_folder, text_file, suite, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    command = [
        "compare", llama_folder, "--methods", "magnitude", "depth", "--keep", 0.8, 0.5,
        "--text", text_file, "--output-dir", folder, "--context", 32, "--windows", 2,
        "--rounds", 1, "--dtype", "float32", "--suite", suite, "--json",
    ]  # fmt: skip
    short = tuple(replace(one, length=16) for one in timing.USUAL)
    monkeypatch.setattr(timing, "USUAL", short)
    measured = []
    monkeypatch.setattr(Scoreboard, "measure", counting(Scoreboard.measure, measured))
    done = must_run(*command)
    assert len(measured) == 1 + 4  # the original, once, and every model
    result = json.loads(done.stdout)
    original, rows = result["original"], result["rows"]
    assert "general_ratio" not in original
    for row in rows:
        assert (
            row["scores"]["texts"]["A"]["original"]
            == original["scores"]["texts"]["A"]["perplexity"]
        )
        assert row["scores"]["general_ratio"] == pytest.approx(
            row["scores"]["texts"]["A"]["perplexity"]
            / original["scores"]["texts"]["A"]["perplexity"],
            rel=1e-5,
        )
        assert row["scores"]["general_ratio_stderr"] > 0
        chance = 0.01
        lost = (row["scores"]["tasks"]["arc_easy"]["acc"] - chance) / (
            original["scores"]["tasks"]["arc_easy"]["acc"] - chance
        )
        assert row["scores"]["kept"] == pytest.approx(lost)
    model = folder / "magnitude" / "keep-0.5"
    alone = must_run(
        "eval", model, "--suite", suite, "--against", llama_folder, "--dtype", "float32", "--json"
    )
    assert json.loads(alone.stdout)["general_ratio"] == rows[1]["scores"]["general_ratio"]
    first, _, *lines = (folder / "compare.md").read_text().splitlines()
    assert first.startswith("| method | general_ratio, keep 0.8 | general_ratio, keep 0.5 | kept,")
    ratio, error = rows[0]["scores"]["general_ratio"], rows[0]["scores"]["general_ratio_stderr"]
    assert lines[0].startswith(f"| magnitude | ×{ratio:.3f} ± {error:.3f} | ×")
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    must_run("verify", folder)
    must_run(*instead(command, "--methods", "magnitude", "random"))
    assert len(measured) == 1 + 4 + 1 + 1 + 2  # those of `eval` too


def counting(measure, found):
    """`measure` that notes its calls."""

    def counted(board, target, *others):
        found.append(target)
        return measure(board, target, *others)

    return counted


@pytest.mark.usefixtures("index_of_some_tasks")
def test_another_suite_is_refused_in_one_line(llama_folder, text_file, suite, tmp_path):
    command = [
        "compare", llama_folder, "--methods", "magnitude", "--keep", 0.5, "--text", text_file,
        "--output-dir", tmp_path / "out", "--context", 32, "--windows", 2, "--rounds", 0,
    ]  # fmt: skip
    must_run(*command, "--suite", suite)

    def refused(*flags):
        done = must_refuse(*instead(command, "--methods", "random", *flags))
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    assert f"compares something else (suite.file: {suite})" in refused()
    content = suite.read_text()
    suite.write_text(content + "limit = 3")
    assert "compares something else (suite.tasks.arc_easy.limit: 0)" in refused("--suite", suite)
    (tmp_path / "b.txt").write_text("Other words, as they come. " * 50)
    suite.write_text(content.replace(str(text_file), "b.txt"))
    assert f"(suite.texts.A.files: ['{text_file}'])" in refused("--suite", suite)
    assert "no suite 'generl'" in refused("--suite", "generl")


def test_another_text_of_the_suite_is_refused(llama_folder, text_file, tmp_path):
    suite, part = tmp_path / "mine.toml", tmp_path / "b.txt"
    part.write_text("Other words, as they come. " * 50)
    suite.write_text("context = 32\nwindows = 2\n[texts.B]\nfiles = ['b.txt']")
    command = [
        "compare", llama_folder, "--keep", 0.5, "--text", text_file, "--output-dir",
        tmp_path / "out", "--context", 32, "--windows", 2, "--rounds", 0, "--suite", suite,
    ]  # fmt: skip
    done = must_run(*command, "--methods", "magnitude")
    part.write_text("Something else. " * 50)
    done = must_refuse(*command, "--methods", "random")
    assert f"--suite: is not what {tmp_path / 'out'} was made of" in done.stderr.splitlines()[-1]


def test_a_window_of_one_token_is_refused(tmp_path):
    done = must_refuse("compare", "smollm2-135m", "--length", 1, "--output-dir", tmp_path / "out")
    assert "--length: out of range; give a whole number of at least 2" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["", "keep-0.5"])
def test_a_run_or_a_model_is_no_place_for_a_comparison(place, small_run, text_file):
    """Nor is any other folder that is not its own."""
    folder = small_run[0] / place
    done = must_refuse("compare", "m", "--text", text_file, "--output-dir", folder)
    assert f"--output-dir: {folder} " in done.stderr
    assert not (folder / "compare.json").exists()
