"""Gemma 4: blocks that have their own inputs, and keys and values of other blocks."""

import json
from dataclasses import replace

import pytest
import torch
from configurations import SHARED, VOCABULARY
from conftest import (
    SMALL,
    byte_tokenizer,
    masks_of,
    must_run,
    problem_of,
    run_command,
    tiny_model,
    tiny_prunable,
    unusual_prunable,
)
from transformers import AutoModelForCausalLM, DynamicCache

from disp_lab.baselines.depth import depth
from disp_lab.baselines.mpo import mpo
from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCHES, SITES
from disp_llm.evaluation.benchmark import count
from disp_llm.evaluation.timing import Workload
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.costs import memory_costs
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.models.kv_cache import cached_tokens, with_cache
from disp_llm.training.blocks import checkpointed_blocks
from disp_llm.training.losses import token_losses

BOTH = ("gemma4_text", "gemma4_unified_text")
OPTIONS = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
LENDERS = {2, 3}
"""Of `SHARED`: the last blocks of their kinds before the two that borrow."""

LIKE_E2B = SHARED | {
    "attention_k_eq_v": False,
    "num_global_key_value_heads": None,
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": VOCABULARY,
    "sliding_window": 8,
}
"""Inputs for each block, keys and values that two blocks borrow, and twice as wide MLPs there."""


def tokens_of(batch: int = 2, length: int = 19) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))


def reads_of(target: PrunableModel) -> list[str]:
    """Of each block, the layers by which its attention reads."""
    names = [target.branches_of(block)[0].reads for block in target.blocks]
    return [" ".join(path.removeprefix("self_attn.")[0] for path in paths) for paths in names]


@pytest.mark.parametrize("model_type", BOTH)
def test_blocks_have_the_layers_that_they_need(model_type):
    assert reads_of(tiny_prunable(model_type)) == ["q k v"] * 3
    unusual = unusual_prunable(model_type)
    assert reads_of(unusual) == ["q k v", "q k v", "q k", "q k v", "q", "q"]
    assert [shape.borrows for shape in unusual.layout.blocks] == [False] * 4 + [True] * 2
    wide = tiny_prunable(model_type, **SHARED)
    assert [shape.intermediate for shape in wide.layout.blocks] == [48] * 4 + [96] * 2
    like_e2b = tiny_prunable("gemma4_text", **LIKE_E2B)
    assert reads_of(like_e2b) == ["q k v"] * 4 + ["q"] * 2
    assert [shape.q for shape in like_e2b.layout.blocks] == [32, 32, 64, 32, 32, 64]


@pytest.mark.parametrize("model_type", BOTH)
@pytest.mark.parametrize("seed", range(3))
def test_a_block_keeps_what_others_borrow(model_type, seed):
    """Whatever the scores say; what a budget leaves runs, and is what was masked."""
    target = unusual_prunable(model_type, branches=True)
    layout = target.layout
    assert layout.lenders == LENDERS
    budget = Budget(layout, sites=(*SITES, *BRANCHES))
    scores = torch.randn(layout.entries, generator=torch.Generator().manual_seed(seed))
    scores[layout.entries_of("attention")] -= 9.0
    masks = Masks(layout, project(scores, budget, 0.4).kept, Selection(scores))
    kept = masks.of_site("attention").tolist()
    assert {i for i, stays in enumerate(kept) if stays} == {0, *LENDERS}
    with masked(target) as masking:
        masking.set(masks.kept.float())
        wanted = target.model(tokens_of()).logits
    masks = replace(masks, kept=layout.without_dropped(masks.kept))
    compact = compact_model(target, masks)
    got = compact(tokens_of()).logits
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    prompt = tokens_of(1)
    cached = compact.generate(prompt, use_cache=True, **OPTIONS)
    assert torch.equal(cached, compact.generate(prompt, use_cache=False, **OPTIONS))


@pytest.mark.parametrize("model_type", BOTH)
def test_the_last_blocks_run_on_the_last_token_alone(model_type):
    """transformers drops positions before them when one logit is asked for; past the window of the
    sliding attention, with padding and without, the masked and the compact model say the same."""
    target = unusual_prunable(model_type)
    masks = masks_of("random", target.layout)
    prompt = tokens_of()
    padded = torch.ones_like(prompt)
    padded[0, :3] = 0
    widths = []
    last = target.blocks[-1].self_attn
    handle = last.register_forward_pre_hook(
        lambda module, args, given: widths.append(given["hidden_states"].shape[1]),
        with_kwargs=True,
    )
    compact = compact_model(target, masks)
    for attention_mask in (None, padded):
        given = {"input_ids": prompt, "attention_mask": attention_mask}
        with masked(target) as masking:
            masking.set(masks.kept.float())
            wanted = target.model(**given).logits[:, -1]
            found = [target.model(**given, logits_to_keep=1).logits[:, -1]]
        found += [
            compact(**given, logits_to_keep=1, use_cache=cache).logits[:, -1]
            for cache in (False, True)
        ]
        for one in found:
            assert (one - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    handle.remove()
    assert widths == [19, 1, 19, 1]


@pytest.mark.parametrize("changes", [LIKE_E2B, LIKE_E2B | {"attention_k_eq_v": True}])
def test_blocks_that_borrow_cache_nothing(changes):
    target = tiny_prunable("gemma4_text", **changes)
    model, layout = target.model, target.layout
    cache = DynamicCache(config=model.config)
    model(torch.tensor([[4, 5, 6]]), **with_cache(model, cache))
    held = [
        0 if one.keys is None else one.keys.numel() + one.values.numel() for one in cache.layers
    ]
    assert held == [3 * shape.cached for shape in layout.blocks]
    assert held[4:] == [0, 0]
    assert all(held[:4])
    tokens = cached_tokens(model, 3, 1)
    costs = memory_costs(layout, target.parameters, 4, tokens)
    stored = 4 * (target.parameters + sum(held))
    assert costs.dense_cost == stored
    longer, shorter = (count(target, Workload("decode", length, 1)) for length in (6, 3))
    read = [one.bytes_read for one in (longer, shorter)]
    # What is lent as well; both lie within the sliding window.
    assert read[0] - read[1] == 4 * 3 * sum([*held, held[3], held[2]]) // 3


def test_whole_attentions_change_the_cache():
    target = unusual_prunable("gemma4_text", branches=True)
    kept = torch.ones(target.layout.entries, dtype=torch.bool)
    whole = Masks(target.layout, kept, Selection(kept.float()))
    assert whole.kv_cache == 1.0
    for index, smaller in ((1, True), (5, False)):
        names = zip(target.layout.names, target.layout.split(kept.clone()), strict=True)
        parts = [part & (name != f"layers.{index}.attention") for name, part in names]
        share = replace(whole, kept=target.layout.without_dropped(torch.cat(parts))).kv_cache
        assert (share < 1.0) is smaller


@pytest.mark.parametrize("model_type", BOTH)
def test_recomputed_blocks_have_the_same_gradients(model_type):
    """A block that runs again in the backward pass stores its keys and values once more."""
    target = unusual_prunable(model_type)
    gradients = []
    for recomputes in (False, True):
        mask = masks_of("random", target.layout).kept.float().requires_grad_(True)
        with masked(target) as masking, checkpointed_blocks(target, recomputes):
            masking.set(mask)
            token_losses(target, tokens_of()).mean().backward()
        gradients.append(mask.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert gradients[0].any()


@pytest.fixture(scope="module")
def run(tmp_path_factory, text_file):
    """A tiny model like E2B, and a finished run of it."""
    folder = tmp_path_factory.mktemp("gemma4")
    tiny_model("gemma4_text", **LIKE_E2B).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    done = must_run(
        "prune", folder / "model", "--keep", 0.5, 0.8, "--text", text_file, "--sites", *SITES,
        *BRANCHES, "--output-dir", folder / "run", "--json", *SMALL,
    )  # fmt: skip
    return folder, json.loads(done.stdout)


def test_a_run_from_beginning_to_end(run):
    folder, printed = run
    for made in printed["models"]:
        assert made["logit_errors"]["max_logit_error"] < 1e-5
        assert made["keep"] <= made["share_asked"]
    done = run_command("verify", folder / "run", "--json")
    assert json.loads(done.stdout)["ok"], done.stdout
    made = AutoModelForCausalLM.from_pretrained(folder / "run" / "keep-0.5")
    prompt = tokens_of(1)
    cached = made.generate(prompt, use_cache=True, **OPTIONS)
    assert torch.equal(cached, made.generate(prompt, use_cache=False, **OPTIONS))


def test_doctor_counts_what_blocks_have(run):
    folder, _ = run
    done = must_run("doctor", folder / "model", "--json")
    found, target = json.loads(done.stdout), tiny_prunable("gemma4_text", **LIKE_E2B)
    assert found["parameters"] == target.parameters
    assert found["block_parameters"] == target.block_parameters


@pytest.mark.parametrize(
    ("method", "says"),
    [(depth, "have keys and values of others, or inputs by their number"), (mpo, "several kinds")],
)
def test_what_moves_blocks_or_shares_between_them_is_refused(text_file, method, says, tmp_path):
    problem = problem_of("gemma4_text", text_file.read_text(), tmp_path, **LIKE_E2B)
    with pytest.raises(InputError, match=says):
        method(problem)


@pytest.mark.parametrize("wide", [False, True])
def test_a_plain_model_has_heads_of_two_widths(text_file, tmp_path, wide):
    """With one intermediate width for all blocks, or twice of it, transformers' own class reads
    it."""
    changes = LIKE_E2B | {"use_double_wide_mlp": wide}
    tiny_model("gemma4_text", **changes).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    must_run(
        "prune", tmp_path / "model", "--keep", 0.75, "--text", text_file, "--sites", "mlp_mid",
        "--align", 8, "--for", "anywhere", "--output-dir", tmp_path / "run", *SMALL,
    )  # fmt: skip
    must_run(
        "convert", tmp_path / "run/keep-0.75", "--to", "plain", "--output-dir", tmp_path / "plain"
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(plain).__name__ == "Gemma4ForCausalLM"
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "keep-0.75")
    assert plain.config.intermediate_size == ours.config.disp_llm["widths"]["mlp_mid"][0] < 48
    assert ours.config.disp_llm["widths"]["mlp_mid"][5] == (
        plain.config.intermediate_size * (2 if wide else 1)
    )
    assert torch.equal(plain(tokens_of()).logits, ours(tokens_of()).logits)
