"""Gemma 4 with experts beside a dense MLP, and a router that reads the whole stream."""

from pathlib import Path

import fresh
import pytest
import torch
from configurations import EXPERTS_BESIDE, VOCABULARY
from conftest import (
    SMALL,
    byte_tokenizer,
    masks_of,
    must_refuse,
    must_run,
    tiny_model,
    tiny_prunable,
    without_branches,
)
from fresh import PROMPT
from mixture_runs import export_another_size, pruned
from transformers import AutoModelForCausalLM
from wrapping import picture, prunable_wrapper

from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCHES, EXPERTS, SITES
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.budget import Budget
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel

LIKE_26B = EXPERTS_BESIDE | {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
"""As its model of 26 thousand million parameters is."""


@pytest.mark.parametrize("sites", [{}, {"experts": True}, {"branches": True}])
def test_the_router_costs_the_same_whatever_is_read(sites):
    """Its rows are priced with the experts or with the whole branch, where one of these can go."""
    target = tiny_prunable("gemma4_text", **sites, **LIKE_26B)
    budget = Budget(target.layout)
    counts = torch.tensor(target.layout.lengths)
    block = 6 * 3 * 24 * 32 + 6 * 32 + 3 * 48 * 32  # experts, router, dense MLP
    narrow = 48 + 48 + 6 * 2 * 24  # what reads one dimension less: gate, up, those of the experts
    names = target.layout.names

    def removed(site: str, entries: int) -> int:
        fewer = counts.clone()
        fewer[names.index(f"layers.1.{site}")] -= entries
        return budget.dense_block_parameters - int(budget.block_parameters(fewer))

    assert budget.dense_block_parameters == target.block_parameters
    assert removed("mlp_in", 1) == narrow
    if "experts" in sites:
        assert removed(EXPERTS, 2) == 2 * (3 * 24 * 32 + 32)
    if "branches" in sites:
        assert removed("mlp", 1) == block


def test_both_mlps_read_and_write_the_same_and_the_router_reads_everything():
    target = tiny_prunable("gemma4_text", experts=True, **LIKE_26B)
    masks = masks_of("random", target.layout)
    compact = compact_model(target, masks)
    for i, block in enumerate(PrunableModel(compact, target.family).blocks):
        kept = {site: masks.widths[site][i] for site in (*SITES, EXPERTS)}
        dense, experts = block.mlp, block.experts
        assert dense.gate_proj.weight.shape == dense.up_proj.weight.shape == (48, kept["mlp_in"])
        assert dense.down_proj.weight.shape == (kept["mlp_out"], 48)
        read = (kept[EXPERTS], 2 * kept["mlp_mid"], kept["mlp_in"])
        assert experts.gate_up_proj.shape == read
        assert experts.down_proj.shape == (kept[EXPERTS], kept["mlp_out"], kept["mlp_mid"])
        assert torch.equal(dense.kept_in, experts.kept_in)
        assert torch.equal(dense.kept_out, experts.kept_out)
        assert len(dense.kept_in) == kept["mlp_in"] < 32
        assert block.router.proj.weight.shape == (kept[EXPERTS], 32)
        assert torch.equal(block.router.scale, target.blocks[i].router.scale)
        assert len(block.router.per_expert_scale) == kept[EXPERTS]


def test_where_a_token_goes_does_not_depend_on_what_experts_read():
    target = tiny_prunable("gemma4_text", **LIKE_26B)
    layout, routed = target.layout, []
    mask = torch.ones(layout.entries)
    for site in ("mlp_in", "mlp_out"):
        layout.split(mask)[layout.names.index(f"layers.0.{site}")][::2] = 0
    handle = target.blocks[0].router.register_forward_hook(
        lambda module, args, output: routed.append(output)
    )
    tokens = torch.randint(4, VOCABULARY, (2, 19))
    with masked(target) as masking:
        masking.set(torch.ones(layout.entries))
        dense = target.model(tokens).logits
        masking.set(mask)
        assert not torch.equal(target.model(tokens).logits, dense)
    handle.remove()
    assert all(torch.equal(one, other) for one, other in zip(*routed, strict=True))


def test_a_dropped_branch_takes_router_and_norms_with_it():
    target = tiny_prunable("gemma4_text", experts=True, branches=True, **LIKE_26B)
    compact = compact_model(target, without_branches(target))
    blocks = PrunableModel(compact, target.family).blocks
    left = {name.split(".")[0] for name, _ in blocks[2].named_parameters()}
    assert left == {"self_attn", "input_layernorm", "post_attention_layernorm"}
    assert compact(torch.tensor([PROMPT])).logits.isfinite().all()


def test_a_dense_model_has_no_experts():
    with pytest.raises(InputError, match="gemma4_text has no experts"):
        _ = tiny_prunable("gemma4_text", experts=True).layout


def test_experts_beside_the_mlp_inside_a_wrapper():
    target = prunable_wrapper("gemma4", branches=True, experts=True, **EXPERTS_BESIDE)
    prompt = picture("gemma4")
    for masks in (masks_of("random", target.layout), without_branches(target)):
        with masked(target) as masking:
            masking.set(masks.kept.float())
            wanted = target.model(**prompt).logits
        got = compact_model(target, masks)(**prompt).logits
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    """A tiny model like 26B-A4B."""
    folder = tmp_path_factory.mktemp("gemma4_experts")
    tiny_model("gemma4_text", **LIKE_26B).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["learned", "fisher", "magnitude", "random"])
def test_methods_prune_everything(mixture, text_file, tmp_path, method):
    """Also another size from file to file; and a fresh process that has not this package."""
    run = tmp_path / "run"
    flags = ("--method", method, "--keep", 0.5, "--sites", *SITES, EXPERTS, *BRANCHES)
    widths = pruned(mixture, text_file, run, *flags)
    assert all(2 <= number <= 6 for number in widths[EXPERTS] if number)
    found = fresh.load_and_generate(run / "keep-0.5", without=True)
    assert found["class"] == "DispGemma4ForCausalLM"
    model, prompt = AutoModelForCausalLM.from_pretrained(run / "keep-0.5"), torch.tensor([PROMPT])
    logits = model(prompt).logits[0]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, rtol=0, atol=1e-5)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **options))
    export_another_size(run)


def test_reap_drops_as_many_experts_in_every_layer(mixture, text_file, tmp_path):
    widths = pruned(mixture, text_file, tmp_path / "run", "--method", "reap", "--keep", 0.75)
    numbers = widths[EXPERTS]
    assert max(numbers) - min(numbers) <= 1  # the last one that there was room for
    assert max(numbers) < 6


def test_active_parameters_are_a_budget(mixture, text_file, tmp_path):
    flags = ("--method", "fisher", "--budget", "active", "--fit", 0.6)
    assert min(pruned(mixture, text_file, tmp_path / "run", *flags)["mlp_mid"]) < 24


def test_uniform_gives_a_model_of_the_original_class(mixture, text_file, tmp_path):
    """The dense MLP stays as wide as it is."""
    run, plain = tmp_path / "run", tmp_path / "plain"
    widths = pruned(
        mixture, text_file, run, "--method", "fisher", "--keep", 0.8, "--for", "anywhere"
    )
    must_run("convert", run / "keep-0.8", "--to", "plain", "--output-dir", plain)
    model, report = AutoModelForCausalLM.from_pretrained(plain, output_loading_info=True)
    assert type(model).__name__ == "Gemma4ForCausalLM"
    assert not any(report.values())
    config, tokens = model.config, torch.tensor([PROMPT])
    assert ({config.num_experts}, {config.moe_intermediate_size}) == (
        set(widths[EXPERTS]),
        set(widths["mlp_mid"]),
    )
    assert config.intermediate_size == 48
    wanted = AutoModelForCausalLM.from_pretrained(run / "keep-0.8")(tokens).logits
    torch.testing.assert_close(model(tokens).logits, wanted)


def test_what_mixtures_cannot_have_is_refused(mixture, text_file, tmp_path):
    run = tmp_path / "run"
    flags = ("--text", text_file, "--output-dir", run, "--method", "flap", "--sites", "mlp_mid")
    done = must_refuse("prune", mixture, *flags, *SMALL)
    assert "the method flap does not know mixtures of experts" in done.stderr
    pruned(mixture, text_file, run, "--method", "magnitude", "--keep", 0.8)
    done = must_refuse(
        "convert", run / "keep-0.8", "--to", "int8", "--output-dir", tmp_path / "small"
    )
    assert "is a mixture of experts" in done.stderr
