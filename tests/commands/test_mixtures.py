"""Mixtures of experts through the commands: pruned, measured, verified, exported again."""

import json
from pathlib import Path

import fresh
import pytest
import torch
from conftest import SMALL, byte_tokenizer, must_refuse, must_run, tiny_model
from fresh import PROMPT
from transformers import AutoModelForCausalLM

from disp_llm.commands import doctor
from disp_llm.config.prune import PruneConfig
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    """A tiny Qwen 3 with mixtures, whose files have the weights of each expert by themselves."""
    folder = tmp_path_factory.mktemp("mixture")
    tiny_model("qwen3_moe", norm_topk_prob=True).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def pruned(model: Path, text: Path, run: Path, *flags: object) -> dict:
    done = must_run("prune", model, "--text", text, "--output-dir", run, "--json", *SMALL, *flags)
    must_run("verify", run)
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["learned", "fisher", "magnitude", "random"])
def test_methods_prune_mixtures_and_their_experts(mixture, text_file, tmp_path, method):
    sites = ("attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out", "experts")
    found = pruned(
        mixture, text_file, tmp_path / "run", "--method", method, "--keep", 0.5, "--sites", *sites
    )
    (size,) = found["models"]
    assert 0.47 < size["keep"] <= 0.5
    assert size["logit_errors"]["max_logit_error"] < 1e-4
    widths = json.loads((tmp_path / "run" / "keep-0.5" / "config.json").read_text())["disp_llm"]
    assert widths["widths"]["experts"][1] == 1  # the dense block
    assert all(2 <= number <= 6 for number in widths["widths"]["experts"][::2])
    if method == "learned":  # all are written alike
        again = fresh.load_and_generate(tmp_path / "run" / "keep-0.5", without=True)
        assert again["class"] == "DispQwen3MoeForCausalLM"


def test_reap_drops_as_many_experts_in_every_layer(mixture, text_file, tmp_path):
    found = pruned(mixture, text_file, tmp_path / "run", "--method", "reap", "--keep", 0.75)
    widths = json.loads((tmp_path / "run" / "keep-0.75" / "config.json").read_text())["disp_llm"]
    numbers = widths["widths"]["experts"][::2]
    assert max(numbers) - min(numbers) <= 1  # the last one that there was room for
    assert max(numbers) < 6
    assert found["models"][0]["logit_errors"]["max_logit_error"] < 1e-4


def test_uniform_gives_a_model_of_the_original_class(mixture, text_file, tmp_path):
    run, plain = tmp_path / "run", tmp_path / "plain"
    pruned(mixture, text_file, run, "--method", "fisher", "--keep", 0.6, "--for", "anywhere")
    config = json.loads((run / "keep-0.6" / "config.json").read_text())["disp_llm"]
    experts, middle = (config["widths"][site][::2] for site in ("experts", "mlp_mid"))
    assert len(set(experts)) == len(set(middle)) == 1
    assert middle[0] % 8 == 0
    must_run("convert", run / "keep-0.6", "--to", "plain", "--output-dir", plain, "--json")
    assert not list(plain.glob("*.py"))
    model, report = AutoModelForCausalLM.from_pretrained(plain, output_loading_info=True)
    assert type(model).__name__ == "Qwen3MoeForCausalLM"
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.num_experts == experts[0]
    assert model.config.moe_intermediate_size == middle[0]
    tokens = torch.tensor([PROMPT])
    wanted = AutoModelForCausalLM.from_pretrained(run / "keep-0.6")(tokens).logits
    torch.testing.assert_close(model(tokens).logits, wanted)
    assert not report["mismatched_keys"]
    tokens = model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)
    found = fresh.load_and_generate(plain, without=True)
    assert found["tokens"] == tokens[0].tolist()
    assert found["module"].startswith("transformers.models.qwen3_moe.")


def test_active_parameters_are_a_budget(mixture, text_file, tmp_path):
    flags = ("--method", "fisher", "--budget", "active", "--fit", 0.6)
    found = pruned(mixture, text_file, tmp_path / "run", *flags)
    assert 0.55 < found["models"][0]["share_of_budget"] <= 0.6


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--method", "flap"), "the method flap does not know mixtures of experts"),
        (
            ("--for", "anywhere", "--sites", "mlp_in"),
            "--sites: names more than --for anywhere can run",
        ),
        (("--budget", "latency", "--fit", 0.5), "cannot be foretold of a mixture of experts"),
    ],
)
def test_what_a_mixture_cannot_have_is_refused(mixture, text_file, tmp_path, flags, says):
    run = tmp_path / "run"
    done = must_refuse("prune", mixture, "--text", text_file, "--output-dir", run, *SMALL, *flags)
    assert says in done.stderr
    assert not run.exists()


def test_experts_of_a_dense_model_are_refused(llama_folder, text_file, tmp_path):
    flags = ("--text", text_file, "--output-dir", tmp_path / "run", "--sites", "experts")
    done = must_refuse("prune", llama_folder, *flags, *SMALL)
    assert "llama has no experts" in done.stderr


def test_doctor_counts_what_a_token_uses(mixture):
    done = must_run("doctor", mixture, "--json")
    size = json.loads(done.stdout)["sizes"][0]
    assert size["gflops_per_token"] * 1e9 < 2 * size["block_parameters"]


def test_doctor_names_the_widths_of_blocks_that_differ(mixture):
    done = must_run("doctor", mixture)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("entries of"))
    config = json.loads((mixture / "config.json").read_text())
    experts = config["moe_intermediate_size"] * config["num_local_experts"]
    widths = sorted((config["intermediate_size"], experts))
    assert line.startswith("entries of a block's sites: mlp_mid ")
    assert "mlp_mid {:,} to {:,}".format(*widths) in line


def test_the_time_is_that_of_the_experts_that_a_token_uses(monkeypatch, tmp_path):
    model, settings = tiny_model("mixtral"), PruneConfig("mixtral")
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(doctor, "operations_per_second", lambda *told: 1.0)
    told = doctor.doctor(tmp_path / "model", device="cpu", length=64, batch=2)
    target = PrunableModel(model, family_of(model.config))
    used = target.block_parameters_of(1) + target.head_weight.numel()
    passes = 3 * settings.learn.steps * 64 * 2 + 2 * settings.scores.tokens
    assert told["plans"][0]["seconds"] == doctor.BESIDE_PRODUCTS * 2 * used * passes
