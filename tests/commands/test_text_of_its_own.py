"""`--text self` through the commands: by default, mixed with files, interrupted, checked."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import SETTINGS, SMALL, must_refuse, must_run, run_command
from safetensors.torch import load_file, save_file
from small import settings_of

import disp_llm
from disp_llm.config.errors import InputError
from disp_llm.data.synthetic import STAGE
from disp_llm.runs.folder import Run


def written_in(run: Path) -> torch.Tensor:
    parts = load_file(run / "synthetic.safetensors")
    return torch.cat([parts["learning"], parts["held_out"]]).view(-1, 32)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The line that says why, which is the only one that says anything."""
    said = [line for line in done.stderr.splitlines() if line.startswith("disp-llm:")]
    assert len(said) == 1, done.stderr
    return said[0]


@pytest.fixture(scope="module")
def own_run(tmp_path_factory, llama_folder) -> tuple[Path, dict]:
    """A finished run for which no text was named."""
    folder = tmp_path_factory.mktemp("own") / "run"
    done = must_run("prune", llama_folder, "--keep", 0.5, "--output-dir", folder, "--json", *SMALL)
    return folder, json.loads(done.stdout)


def test_a_model_learns_from_its_own_text_where_no_text_is_named(own_run):
    folder, result = own_run
    read = 6 * 32 + 4 * 32  # steps and calibration
    measured = 4 * 32
    assert written_in(folder).shape == ((read + measured) // 32, 32)
    assert result["tokens_seen"] == read
    assert result["models"][0]["measured"]["tokens"] == 4 * 31
    assert result["source"]["text"] == "synthetic text, 448 tokens"
    assert result["source"]["eval_text"] == f"the last 29% of {result['source']['text']}"
    assert result["writing_s"] >= 0
    card = (folder / "keep-0.5" / "README.md").read_text()
    assert "chosen on synthetic text, 448 tokens" in " ".join(card.split())
    assert "synthetic text, 448 tokens" in (folder / "report.html").read_text()


def test_self_is_the_name_of_the_default_and_a_seed_gives_the_same_text(
    own_run, llama_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("self").write_text("a file that is not meant")
    result = disp_llm.prune(
        str(llama_folder), text="self", keep=[0.5], output_dir="run", **SETTINGS
    )
    assert result.figures["source"]["text_sha256"] == own_run[1]["source"]["text_sha256"]
    masks = (load_file(f / "selection.safetensors") for f in (own_run[0], Path("run")))
    ours, theirs = masks
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_seed_writes_other_text(own_run, llama_folder, tmp_path):
    must_run(
        "prune", llama_folder, "--method", "fisher", "--seed", 1, "--output-dir", tmp_path / "run",
        *SMALL,
    )  # fmt: skip
    written = written_in(tmp_path / "run")
    assert len(written) == 8  # fisher takes no steps
    assert not torch.equal(written[:2], written_in(own_run[0])[:2])


def test_a_file_called_self_is_named_with_its_folder(
    llama_folder, text_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(text_file, "self")
    done = must_run(
        "prune", llama_folder, "--text", "./self", "--method", "magnitude", "--json",
        "--output-dir", "run", *SMALL,
    )  # fmt: skip
    assert json.loads(done.stdout)["source"]["text"] == "self"
    assert not Path("run/synthetic.safetensors").exists()
    result = disp_llm.prune(
        str(llama_folder),
        text=Path("self"),
        method="magnitude",
        output_dir="again",
        **settings_of("magnitude"),
    )
    assert result.figures["source"]["text"] == "self"


@pytest.mark.parametrize("weights", [["--weights", 1, 3], []])
def test_own_text_are_mixed_with_files(weights, llama_folder, text_file, tmp_path):
    done = must_run(
        "prune", llama_folder, "--text", text_file, "self", *weights, "--output-dir",
        tmp_path / "run", "--json", *SMALL,
    )  # fmt: skip
    share = 0.75 if weights else 1
    tokens = written_in(tmp_path / "run").numel()
    assert tokens == -(-share * (320 + 128) // 32) * 32
    source = json.loads(done.stdout)["source"]
    assert source["text"] == f"text.txt, synthetic text, {tokens} tokens"


def test_interrupted_while_it_writes_and_resumed(own_run, llama_folder, tmp_path):
    def progress(stage: str, done: int, total: int, figures: dict) -> None:
        if stage == STAGE and done >= 40:
            raise KeyboardInterrupt

    call = SETTINGS | {"keep": [0.5], "output_dir": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        disp_llm.prune(str(llama_folder), progress=progress, **call)
    assert Run(tmp_path / "run").result()["status"] == "stopped"
    must_run("prune", llama_folder, "--output-dir", tmp_path / "run", "--resume")
    assert torch.equal(written_in(tmp_path / "run"), written_in(own_run[0]))
    ours, theirs = (
        load_file(folder / "selection.safetensors") for folder in (tmp_path / "run", own_run[0])
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_is_not_begun_for_what_cannot_be(llama_folder, tmp_path):
    for flags, said in [
        (["--keep", 0.0001], "--keep"),
        (["--length", 500], "--length"),
        (["--dataset", "a:b", "--text", "self"], "--dataset: given together with --text"),
        (["--eval-text", "self"], "--eval-text: cannot be text that the model writes"),
        (
            ["--text", "self", "--weights", 1, 2],
            "--weights: must be as many as there are texts (1;",
        ),
        (["--self-tokens", -1], "--self-tokens: out of range; give a whole number of at least 0"),
        (["--text", "self", tmp_path / "gone.txt"], "gone.txt: No such file"),
    ]:
        done = run_command("prune", llama_folder, *SMALL, "--output-dir", tmp_path / "run", *flags)
        assert (done.returncode, said in refusal(done)) == (2, True), done.stderr
        assert not (tmp_path / "run").exists()


def test_verify_finds_text_that_has_changed(own_run, tmp_path):
    folder = shutil.copytree(own_run[0], tmp_path / "run")
    must_run("verify", folder)
    path = folder / "synthetic.safetensors"
    save_file({"tokens": torch.zeros(14, 32).int()}, path)
    problems = disp_llm.verify(folder)["problems"]
    assert [problem["file"] for problem in problems] == [str(path)]


def test_other_sizes_of_a_run_are_measured_on_the_same_text(own_run, tmp_path):
    folder = shutil.copytree(own_run[0], tmp_path / "run")
    before = written_in(folder)
    done = must_run("export", folder, "--keep", 0.7, "--json")
    assert json.loads(done.stdout)["source"] == own_run[1]["source"]
    assert torch.equal(written_in(folder), before)


def test_a_run_of_text_in_memory_does_not_go_on_with_own_text(llama_folder, text_file, tmp_path):
    call = settings_of("magnitude") | {"method": "magnitude", "output_dir": tmp_path / "run"}
    disp_llm.prune(str(llama_folder), text=[text_file.read_text()], **call)
    (tmp_path / "run" / "keep-0.5" / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match=r"text: is not what .* was made of"):
        disp_llm.prune(str(llama_folder), resume=True, **call)
    assert not (tmp_path / "run" / "synthetic.safetensors").exists()


@pytest.mark.parametrize("name", ["eval_text", "eval_examples"])
def test_what_is_measured_in_memory_is_not_written_too(name, llama_folder, text_file, tmp_path):
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
    given = {"eval_text": [text_file.read_text()], "eval_examples": rows}
    call = SETTINGS | {name: given[name], "output_dir": tmp_path / "run", "keep": 0.5}
    result = disp_llm.prune(str(llama_folder), **call)
    assert result.figures["source"]["text"] == "synthetic text, 320 tokens"  # steps, calibration


def test_other_sizes_of_a_run_of_text_in_memory_are_not_measured(llama_folder, text_file, tmp_path):
    """Nor does the model write text in place of it, which takes minutes and stays in the run."""
    call = settings_of("magnitude") | {"method": "magnitude", "output_dir": tmp_path / "run"}
    disp_llm.prune(str(llama_folder), text=[text_file.read_text()], **call)
    with pytest.raises(InputError, match=r"^text: lay in memory .* add `no_measure`"):
        disp_llm.export(tmp_path / "run", keep=0.7)
    assert not (tmp_path / "run" / "synthetic.safetensors").exists()
    assert disp_llm.export(tmp_path / "run", keep=0.7, no_measure=True).size().measured is None


def test_minutes_are_shared_between_writing_and_learning(llama_folder, tmp_path):
    flags = [
        *SMALL[2:],
        "--minutes",
        0.05,
        "--compile",
        "no",
        "--output-dir",
        tmp_path / "run",
        "--json",
    ]
    done = must_run("prune", llama_folder, *flags)
    result = json.loads(done.stdout)
    assert len(written_in(tmp_path / "run")) >= (4 * 32 + 128) // 32
    assert result["steps"] >= 5


FEW = ["--tokens", 256, "--length", 32, "--context", 32, "--windows", 4, "--device", "cpu",
       "--dtype", "float32"]  # fmt: skip


def test_the_original_writes_what_a_pruned_model_is_trained_on(own_run, tmp_path):
    done = must_run(
        "recover", own_run[0] / "keep-0.5", "--output-dir", tmp_path / "run", "--json", *FEW
    )
    result = json.loads(done.stdout)
    assert result["source"]["text"] == "synthetic text, 384 tokens"
    assert "teacher_revision" in result["source"]
    assert result["teacher"]["perplexity"] > 1
    written = written_in(tmp_path / "run")
    assert written.shape == (12, 32)
    known = written_in(own_run[0])[:10]  # what the masks were learned from, by the same seed
    assert not any(torch.equal(ours, theirs) for ours in written for theirs in known)


def test_the_original_writes_also_where_it_does_not_teach(own_run, tmp_path):
    folder = tmp_path / "run"
    flags = ["--output-dir", folder, "--distill", 0, "--json", *FEW]
    done = must_run("recover", own_run[0] / "keep-0.5", *flags)
    result = json.loads(done.stdout)
    assert "teacher" not in result


@pytest.mark.parametrize(
    ("distill", "hint"),
    [(0, "name a model, or give --text"), (0.5, "or give --text and a --distill of 0")],
)
def test_who_is_to_write_is_asked_in_one_line(distill, hint, llama_folder, tmp_path):
    flags = ["--output-dir", tmp_path / "run", "--distill", distill, *FEW]
    done = must_refuse("recover", llama_folder, *flags)
    assert "--teacher: is needed to write text" in refusal(done)
    assert hint in refusal(done)
    assert not (tmp_path / "run").exists()


def test_methods_are_compared_on_a_text_that_is_named(llama_folder, tmp_path):
    done = must_refuse("compare", llama_folder, "--output-dir", tmp_path / "table")
    assert "--text: is missing, and all methods learn from one text" in refusal(done)
    assert not (tmp_path / "table").exists()
