"""Sizes that are recovered one after the other: each begins with the weights of the larger one."""

import json
import shutil

import pytest
import torch
from conftest import SMALL, kept_in, must_run, run_command
from safetensors.torch import load_file, save_file
from test_recover import FEW

from disp_llm.runs.files import write_checked_json
from disp_llm.runs.folder import Run


@pytest.fixture(scope="module")
def larger(small_run, text_file, tmp_path_factory):
    """The folder of keep 0.8, recovered."""
    folder = tmp_path_factory.mktemp("larger") / "run"
    done = recover(small_run[0] / "keep-0.8", text_file, folder, "--learning-rate", 0.003)
    assert done.returncode == 0, done.stderr
    return folder / "model"


def recover(folder, text_file, run, *flags):
    return run_command(
        "recover", folder, "--text", text_file, "--output-dir", run, *FEW, "--json", *flags
    )


def test_it_begins_with_what_the_larger_has_learned(small_run, larger, text_file, tmp_path):
    flags = ("--weights-from", larger, "--learning-rate", 1e-12)
    done = recover(small_run[0] / "keep-0.5", text_file, tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    alone = next(one for one in small_run[1]["models"] if one["size"] == "0.5")
    assert result["before"]["measured"]["perplexity"] < 0.95 * alone["measured"]["perplexity"]
    assert result["tokens_before"] == result["tokens_seen"] == 1920
    assert result["source"]["weights_from_revision"].startswith("sha256:")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "beginning with the weights of the size 0.8, after 1,920 tokens of earlier" in card
    smaller, found = (
        load_file(one / "model.safetensors") for one in (tmp_path / "run/model", larger)
    )
    kept, beyond = (kept_in(small_run[0], size) for size in ("0.5", "0.8"))
    places = [
        torch.searchsorted(beyond[f"layers.1.{site}"], kept[f"layers.1.{site}"])
        for site in ("mlp_out", "mlp_mid")
    ]
    name = "model.layers.1.mlp.down_proj.weight"
    rows, columns = places
    assert smaller[name].shape < found[name].shape
    torch.testing.assert_close(smaller[name], found[name][rows][:, columns])
    name = "model.layers.1.input_layernorm.weight"
    torch.testing.assert_close(smaller[name], found[name])


def test_a_third_size_knows_what_both_have_read(small_run, larger, text_file, tmp_path):
    """Tokens add up along the sizes, and along recoveries of one folder."""
    flags = ("--weights-from", larger)
    done = recover(small_run[0] / "keep-0.5", text_file, tmp_path / "once", *flags)
    assert done.returncode == 0, done.stderr
    done = recover(tmp_path / "once/model", text_file, tmp_path / "twice")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens_before"] == 2 * 1920


def test_another_folder_than_it_began_with(small_run, larger, text_file, tmp_path):
    changed = shutil.copytree(larger.parent, tmp_path / "larger") / "model"
    flags = ("--weights-from", changed)
    assert recover(small_run[0] / "keep-0.5", text_file, tmp_path / "run", *flags).returncode == 0
    run = Run(tmp_path / "run")
    write_checked_json(run.result_file, run.result() | {"status": "running"})
    weights = load_file(changed / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    (changed / "SHA256SUMS").unlink()
    done = recover(small_run[0] / "keep-0.5", text_file, tmp_path / "run", *flags, "--resume")
    assert done.returncode == 2
    assert "--weights-from" in done.stderr


@pytest.mark.parametrize(
    ("folder", "from_", "says"),
    [
        ("keep-0.8", "larger", "is no larger than"),
        ("keep-0.8", "keep-0.5", "is no larger than"),
        ("keep-0.5", "llama", "is no size of the run that"),
        ("llama", "larger", "is no size of the run that"),
        ("keep-0.5", "alone", "is no size of the run that"),
        ("keep-0.5", "wrong", "is not what"),
        ("keep-0.5", "nowhere", "nowhere"),
    ],
)
def test_only_a_larger_size_of_the_same_run(
    small_run, larger, llama_folder, text_file, tmp_path, folder, from_, says
):
    shutil.copytree(larger, tmp_path / "alone")
    wrong = shutil.copytree(larger.parent, tmp_path / "wrong/run") / "model"
    if from_ == "wrong":  # the folder of another size, under the card of this one
        for file in ("model.safetensors", "config.json"):
            shutil.copyfile(small_run[0] / "keep-0.5" / file, wrong / file)
        (wrong / "SHA256SUMS").unlink()
    places = {"larger": larger, "llama": llama_folder, "alone": tmp_path / "alone", "wrong": wrong}
    runs = {name: small_run[0] / name for name in ("keep-0.5", "keep-0.8")}
    nowhere = {"nowhere": tmp_path / "nowhere"}
    given = places | runs | nowhere
    flags = ("--weights-from", given[from_], "--distill", 0)
    done = recover(given[folder], text_file, tmp_path / "run", *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_biases_for_what_is_pruned_are_of_every_size_other_ones(llama_folder, text_file, tmp_path):
    flags = ("--method", "flap", "--keep", 0.5, 0.8, "--text", text_file, *SMALL)
    done = must_run("prune", llama_folder, *flags, "--output-dir", tmp_path / "flap")
    flags = ("--weights-from", tmp_path / "flap/keep-0.8", "--distill", 0)
    done = recover(tmp_path / "flap/keep-0.5", text_file, tmp_path / "run", *flags)
    assert done.returncode == 2
    assert "--weights-from: cannot be had where biases stand for" in done.stderr
