"""Training after pruning, as a user runs it: it helps, resumes bit for bit, and what it writes is a
folder like any other."""

import json
import re
import shutil
import signal
import time
import tomllib

import fresh
import pytest
import torch
import transformers
from conftest import SMALL, byte_tokenizer, must_refuse, must_run, run_command, tiny_model
from safetensors.torch import load_file
from small import usual
from torch.nn import functional

from disp_llm.commands import session
from disp_llm.data import sources
from disp_llm.data.tokens import load_tokens
from disp_llm.evaluation.suites import Scoreboard
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of
from disp_llm.runs.files import write_checked_json
from disp_llm.runs.folder import Run
from disp_llm.training.losses import Teacher, token_losses

FEW = usual("--tokens 1920 --length 32 --batch 4 --context 32 --windows 8 --dtype float32".split())
"""15 steps of 128 tokens."""


def recover(*arguments, **options) -> dict:
    done = must_run("recover", *arguments, *FEW, "--json", **options)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def recovered(small_run, text_file, tmp_path_factory):
    """All weights trained, half of the loss from the teacher that the card names."""
    folder = tmp_path_factory.mktemp("recover") / "run"
    flags = ("--text", text_file, "--output-dir", folder, "--learning-rate", 0.03)
    return folder, recover(small_run[0] / "keep-0.5", *flags)


def test_perplexity_falls_and_the_folder_has_it(recovered, text_file):
    folder, result = recovered
    assert result == Run(folder).result()
    assert result["status"] == "done"
    assert result["tokens_seen"] == 1920
    assert (
        result["model"]["measured"]["perplexity"] < 0.9 * result["before"]["measured"]["perplexity"]
    )
    assert 0.45 < result["model"]["keep"] <= 0.5
    assert result["teacher"]["perplexity"] > 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 16))
    evaluated = run_command(
        "eval", folder / "model", "--text", text_file,
        "--context", 32, "--dtype", "float32", "--json",
    )  # fmt: skip
    assert json.loads(evaluated.stdout)["parameters"] == result["model"]["parameters"]


@pytest.mark.parametrize("worse", [False, True])
def test_training_that_makes_a_model_worse_says_so(worse, small_run, text_file, tmp_path, caplog):
    (tmp_path / "other.txt").write_text("\x01\x02" * 2000)
    learned = tmp_path / "other.txt" if worse else text_file
    flags = ("--text", learned, "--eval-text", text_file, "--output-dir", tmp_path / "run")
    recover(small_run[0] / "keep-0.5", *flags, "--learning-rate", 0.03)
    assert ("training has made it worse, perplexity" in caplog.text) is worse


def test_only_blocks_and_norms_have_changed(recovered, small_run):
    before = load_file(small_run[0] / "keep-0.5" / "model.safetensors")
    after = load_file(recovered[0] / "model" / "model.safetensors")
    assert {name: t.shape for name, t in before.items()} == {n: t.shape for n, t in after.items()}
    same = {name for name in before if torch.equal(before[name], after[name])}
    buffers = {name for name in before if name.endswith(("kept_in", "kept_out"))}
    assert same == buffers | {"model.embed_tokens.weight", "lm_head.weight"}


def test_the_card_says_what_was_done(recovered):
    card = (recovered[0] / "model" / "README.md").read_text()
    assert "multiplied by a factor that was learned" in card
    assert "The blocks were then trained on 1,920 tokens" in card
    assert f"{recovered[1]['model']['measured']['perplexity']:.2f}" in card


def test_a_dense_model_takes_the_same_training(llama_folder, text_file, tmp_path):
    flags = ("--text", text_file, "--output-dir", tmp_path / "run", "--distill", 0)
    result = recover(llama_folder, *flags, "--learning-rate", 0.03)
    assert result["model"]["measured"]["perplexity"] < result["before"]["measured"]["perplexity"]
    made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert type(made).__name__ == "LlamaForCausalLM"
    assert result["model"]["keep"] == 1


def test_interrupted_and_resumed_equals_uninterrupted(small_run, text_file, tmp_path):
    flags = ["--text", text_file, *FEW]
    command = ["recover", small_run[0] / "keep-0.5", *flags]
    must_run(*command, "--output-dir", tmp_path / "whole")
    running = fresh.start_command(*command, "--output-dir", tmp_path / "cut")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    for _ in range(6000):
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    done = running.wait()
    assert done.returncode == 130, done.stderr
    assert "--resume" in done.stderr
    must_run("recover", "--resume", "--output-dir", tmp_path / "cut")
    assert metrics.read_text().count("\n") == 15
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    counted = [Run(tmp_path / name).result()["tokens_seen"] for name in ("whole", "cut")]
    assert counted == [1920, 1920]
    steps = metrics.stat().st_mtime_ns
    assert not list((tmp_path / "cut").rglob("step-*")), "a finished run needs no checkpoints"
    must_run("recover", "--resume", "--output-dir", tmp_path / "cut")
    assert metrics.stat().st_mtime_ns == steps, "nothing is trained again"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--distill", "1.5"), "--distill: out of range; give a number of at most 1"),
        (("--tokens", "0"), "--tokens: out of range; give a whole number of at least 1"),
        (("--learning-rate", "nan"), "--learning-rate: out of range; give a number above 0"),
    ],
)
def test_careless_numbers(small_run, tmp_path, flags, words):
    done = must_refuse(
        "recover", small_run[0] / "keep-0.5", *flags, "--output-dir", tmp_path / "run"
    )
    assert words in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_original_that_is_gone_is_named(small_run, text_file, tmp_path):
    """The folder of a run knows where its original lay."""
    shutil.copytree(small_run[0], tmp_path / "moved")
    settings = tmp_path / "moved" / "config.toml"
    text = settings.read_text()
    model = tomllib.loads(text)["model"]
    settings.write_text(text.replace(model, f"{tmp_path}/gone"))
    done = must_refuse(
        "recover",
        tmp_path / "moved/keep-0.5",
        "--text",
        text_file,
        "--output-dir",
        tmp_path / "run",
    )
    assert f"and {tmp_path}/gone is gone; name a model" in done.stderr


def test_a_teacher_must_be_known_and_fit(llama_folder, text_file, tmp_path):
    flags = ("--text", text_file, "--output-dir", tmp_path / "run")
    done = must_refuse("recover", llama_folder, *flags)
    assert "--teacher" in done.stderr
    other = tiny_model("llama", vocab_size=400)
    other.save_pretrained(tmp_path / "other")
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.save_pretrained(tmp_path / "other")
    done = must_refuse("recover", llama_folder, "--teacher", tmp_path / "other", *flags)
    assert "400 tokens" in done.stderr
    assert not (tmp_path / "run").exists()


def test_distillation_is_the_divergence_of_whole_distributions():
    """In chunks and with a gradient, as computed from all logits at once."""
    student, taught = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    family = family_of(student.config)
    student_model, taught_model = (PrunableModel(one, family) for one in (student, taught))
    tokens = torch.randint(320, (2, 40), generator=torch.Generator().manual_seed(0))
    weight = student.model.layers[1].mlp.down_proj.weight.requires_grad_(True)
    teacher = Teacher(taught_model, 0.3)
    loss = token_losses(student_model, tokens, teacher)
    (gradient,) = torch.autograd.grad(loss.mean(), weight)
    given = student(tokens).logits[:, :-1].log_softmax(-1)
    wanted = taught(tokens).logits[:, :-1].log_softmax(-1)
    cross_entropy = functional.nll_loss(given.transpose(1, 2), tokens[:, 1:], reduction="none")
    expected = 0.7 * cross_entropy + 0.3 * (wanted.exp() * (wanted - given)).sum(-1)
    torch.testing.assert_close(loss, expected)
    (directly,) = torch.autograd.grad(expected.mean(), weight)
    torch.testing.assert_close(gradient, directly)


@pytest.fixture
def suite(tmp_path, text_file):
    path = tmp_path / "mine.toml"
    path.write_text(f"context = 32\nwindows = 4\n[texts.A]\nfiles = ['{text_file}']")
    return path


def test_scores_before_and_after(small_run, llama_folder, text_file, suite, tmp_path):
    student, folder = small_run[0] / "keep-0.5", tmp_path / "run"
    command = [
        "recover", student, "--text", text_file, "--output-dir", folder, "--suite", suite,
        "--learning-rate", 0.03, *FEW, "--json",
    ]  # fmt: skip
    done = must_run(*command)
    result = json.loads(done.stdout)
    for name, model in (("before", student), ("model", folder / "model")):
        alone = run_command(
            "eval",
            model,
            "--suite",
            suite,
            "--against",
            llama_folder,
            "--dtype",
            "float32",
            "--json",
        )
        found = json.loads(alone.stdout)
        for key in ("general_ratio", "general_ratio_stderr", "texts"):
            assert result[name]["scores"][key] == found[key]
    before, after = (result[name]["scores"]["general_ratio"] for name in ("before", "model"))
    assert after < before
    card = (folder / "model" / "README.md").read_text()
    assert f"that of the suite ×{before:.3f}" in card
    assert f"geometric mean over A | ×1 | ×{after:.3f} ± " in card
    must_run("verify", folder)
    page = folder / "report.html"
    must_run("report", folder, "--output", page)
    assert f"<td>×{before:.3f} ± " in page.read_text()
    shutil.rmtree(folder / "model")  # so that there is something to go on with
    suite.write_text(suite.read_text().replace("texts.A", "texts.B"))
    done = run_command(*command, "--resume")
    assert f"--suite: is not what {folder} was made of" in done.stderr.splitlines()[-1]


def test_the_original_is_not_measured_again(llama_folder, text_file, suite, tmp_path, monkeypatch):
    """Its scores lie in the card of a run that had the same suite; of another one they do not."""
    run = tmp_path / "run"
    flags = ("--text", text_file, "--suite", suite)
    must_run("prune", llama_folder, "--method", "magnitude", *flags, "--output-dir", run, *SMALL)
    measured = []
    measure = Scoreboard.measure

    def counted(board, target, *others):
        measured.append(target.parameters)
        return measure(board, target, *others)

    monkeypatch.setattr(Scoreboard, "measure", counted)
    result = recover(run / "keep-0.5", *flags, "--output-dir", tmp_path / "better")
    pruned = json.loads((run / "result.json").read_text())["models"][0]
    assert result["before"]["scores"]["general_ratio"] == pruned["scores"]["general_ratio"]
    assert measured == [pruned["parameters"]] * 2
    suite.write_text(suite.read_text().replace("windows = 4", "windows = 3"))
    recover(run / "keep-0.5", *flags, "--output-dir", tmp_path / "other")
    assert len(set(measured)) == 2
    assert len(measured) == 2 + 3


def test_a_model_that_was_not_pruned_is_its_own_original(llama_folder, text_file, suite, tmp_path):
    flags = ("--text", text_file, "--output-dir", tmp_path / "run", "--suite", suite)
    result = recover(llama_folder, *flags, "--distill", 0, "--learning-rate", 0.03)
    assert result["before"]["scores"]["general_ratio"] == 1
    assert result["model"]["scores"]["general_ratio"] < 1


def test_without_a_teacher_there_may_be_no_original(small_run, text_file, suite, tmp_path, caplog):
    flags = ("--text", text_file, "--distill", 0, "--suite", suite)
    result = recover(small_run[0] / "keep-0.5", *flags, "--output-dir", tmp_path / "run")
    assert "original_scores" not in result
    assert "general_ratio" not in result["model"]["scores"]
    assert "nothing tells what the original scores" in caplog.text


def test_the_page_of_a_run_shows_before_and_after(recovered, tmp_path):
    folder, result = recovered
    page = tmp_path / "page.html"
    must_run("report", folder, "--output", page)
    text = page.read_text()
    made = (result[name]["measured"] for name in ("before", "model"))
    for figures in (*made, result["teacher"]):
        assert f"{figures['perplexity']:.2f} ± {figures['perplexity_stderr']:.2f}" in text
    assert "no finished" not in text


def test_a_router_that_its_family_keeps_in_float32_stays_so(text_file, tmp_path):
    """Training makes every parameter of the blocks float32; the folder has each in its own type."""
    folder, gate = tmp_path / "mixture", "model.layers.2.mlp.gate.weight"
    tiny_model("glm4_moe").save_pretrained(folder)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loaded.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    must_run(
        "recover", folder, *FEW, "--text", text_file, "--output-dir", tmp_path / "run",
        "--distill", 0, "--dtype", "bfloat16",
    )  # fmt: skip
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "run/model"))
    assert before[gate].dtype == torch.float32
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert not torch.equal(after[gate], before[gate])
    assert not torch.equal(after[gate], after[gate].bfloat16().float())


def test_the_card_measures_both_models_on_one_text(small_run, text_file, tmp_path):
    """On the text of the recovery, with the original where it teaches or was measured there."""
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text()[::-1])
    for distill, says in ((0.5, None), (0.0, "not measured")):
        run = tmp_path / f"{distill}"
        flags = ("--text", text_file, "--eval-text", other, "--output-dir", run)
        result = recover(small_run[0] / "keep-0.5", *flags, "--distill", distill)
        card = (run / "model" / "README.md").read_text()
        assert "tokens of other.txt" in card
        assert "name: other.txt" in card
        (row,) = re.findall(r"\| perplexity \| (.*?) \| (.*?) \|", card)
        assert row[0] == says or row[0].startswith(f"{result['teacher']['perplexity']:.2f} ")
        assert row[1].startswith(f"{result['model']['measured']['perplexity']:.2f} ")


def test_the_teacher_is_measured_after_a_kill_before_it(recovered, text_file, tmp_path):
    run = Run(shutil.copytree(recovered[0], tmp_path / "run"))
    result = run.result()
    teacher = result.pop("teacher")
    write_checked_json(run.result_file, result | {"status": "running"})
    flags = ("--text", text_file, "--output-dir", run.folder, "--learning-rate", 0.03, "--resume")
    assert recover(small_model_of(recovered), *flags)["teacher"] == teacher


def small_model_of(recovered) -> str:
    """What it was made from."""
    return tomllib.loads((recovered[0] / "config.toml").read_text())["model"]


def test_a_run_of_it_is_named_where_one_of_prune_is_meant(recovered):
    done = must_refuse("export", recovered[0], "--keep", 0.4)
    assert "is a run of `disp-llm recover`; name the `output_dir` of an earlier" in done.stderr


@pytest.mark.filterwarnings("ignore:text. the first")
def test_what_masks_were_learned_from_is_not_held_out_of_a_longer_text(
    llama_folder, tmp_path, monkeypatch
):
    """Of a text that is longer than what is read, more windows to measure on take more of it."""
    monkeypatch.setattr(sources, "LEAST", 2**12)
    text, run, read = tmp_path / "long.txt", tmp_path / "run", []
    text.write_text("".join(f"Line {i}: its square is {i * i}.\n" for i in range(20_000)))

    def load(*arguments):
        read.append(load_tokens(*arguments))
        return read[-1]

    monkeypatch.setattr(session, "load_tokens", load)
    flags = ("--text", text, "--context", 32, "--dtype", "float32", "--device", "cpu")
    learning = ("--steps", 1, "--length", 32, "--calibration-sequences", 1, "--rounds", 0)
    learning += ("--calibration-length", 32, "--windows", 64, "--output-dir", run)
    must_run("prune", llama_folder, "--keep", 0.8, *flags, *learning)
    training = ("--tokens", 32, "--length", 32, "--batch", 1, "--windows", 4)
    training += ("--output-dir", tmp_path / "recovered")
    must_run("recover", run / "keep-0.8", *flags, *training)
    (learned,), held_out = read[0].corpus.streams, read[1].evaluation
    end = len(read[1].corpus.streams[0])  # where it begins in the text
    assert not torch.equal(learned[end : end + len(held_out)], held_out)
    assert end >= len(learned)
