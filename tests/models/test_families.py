"""Every row of the table: what is exported computes what was masked, to the last bit where it
can."""

import dataclasses
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import fresh
import pytest
import torch
from configurations import ARCHITECTURES, MIXTURES, VOCABULARY, cases, tiny_config
from conftest import (
    byte_tokenizer,
    masks_of,
    tiny_prunable,
    unusual_prunable,
    without_branches,
)
from fresh import PROMPT
from in_memory import export_folder
from packages import write_package
from transformers import AutoModelForCausalLM, DynamicCache

from disp_llm.config.errors import InputError
from disp_llm.config.names import SITES
from disp_llm.data.windows import Windows
from disp_llm.exporter.cutting import compact_model, fold_into_weights
from disp_llm.masks.budget import Budget
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Compensation, Masks, Selection
from disp_llm.models.architectures import (
    FAMILIES,
    family_of,
    model_types,
    register_architecture,
)
from disp_llm.models.kv_cache import with_cache
from disp_llm.training.losses import mean_losses, token_losses

CASES = cases(ARCHITECTURES)


def unchanged(model_type: str, branches: bool = False) -> PrunableModel:
    """Of an unusual configuration, made once: for tests that leave it as it is. What these draw
    does not depend on which of them is the first."""
    target = _made_once(model_type, branches)
    torch.manual_seed(1)
    return target


@cache
def _made_once(model_type: str, branches: bool) -> PrunableModel:
    return unusual_prunable(model_type, branches=branches)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_exported_equals_masked(model_type):
    assert_exported(unchanged(model_type), "random")


@pytest.mark.parametrize("kind", ["keep-all", "keep-one", "plain"])
@pytest.mark.parametrize("model_type", CASES)
def test_exported_equals_masked_with_other_masks(model_type, kind):
    """And of a plain configuration with random ones."""
    if kind == "plain":
        assert_exported(tiny_prunable(model_type), "random")
    else:
        assert_exported(unchanged(model_type), kind)


def assert_exported(target: PrunableModel, kind: str) -> None:
    model, layout = target.model, target.layout
    masks = masks_of(kind, layout)
    tokens = torch.randint(4, VOCABULARY, (2, 19))

    dense = model(tokens).logits
    with masked(target) as masking:
        masking.set(masks.kept.float())
        wanted = model(tokens).logits
    compact = compact_model(target, masks)
    got = compact(tokens).logits

    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    if kind == "keep-all":
        assert torch.equal(got, dense)
        assert set(compact.state_dict()) == set(model.state_dict())
    else:
        assert (wanted - dense).abs().max() > 0.01 * dense.abs().max()

    assert_counted(target, compact, masks)
    assert target.block_parameters == Budget(layout).dense_block_parameters


def assert_counted(target: PrunableModel, compact, masks: Masks) -> None:
    """The budget's counts are those of the models."""
    counts = target.layout.counts(masks.kept.long())
    budget, small = Budget(target.layout), PrunableModel(compact, target.family)
    assert small.parameters == target.parameters - budget.removed_parameters(counts)
    assert small.block_parameters == int(budget.block_parameters(counts))


@pytest.mark.parametrize("model_type", CASES)
def test_scales_are_folded_into_the_weights(model_type):
    """The model with scaled masks, that with scaled weights and plain masks, and the exported one
    agree."""
    target = unusual_prunable(model_type, heads=FAMILIES[model_type].can_lose_heads)
    model, layout = target.model, target.layout
    scales = torch.rand(layout.entries, generator=torch.Generator().manual_seed(1)) + 0.5
    selection = Selection(torch.zeros(layout.entries), Compensation(scales))
    masks = dataclasses.replace(masks_of("random", layout), selection=selection)
    tokens = torch.randint(4, VOCABULARY, (2, 19))
    dense = model(tokens).logits
    with masked(target) as masking:
        masking.set(masks.kept * scales)
        wanted = model(tokens).logits
        with fold_into_weights(target, masks):
            masking.set(masks.kept.float())
            by_weights = model(tokens).logits
            compact = compact_model(target, masks)
    limit = 1e-5 * wanted.abs().max()
    assert (by_weights - wanted).abs().max() <= limit
    assert (compact(tokens).logits - by_weights).abs().max() <= limit
    assert torch.equal(model(tokens).logits, dense)  # the original's weights are back


@pytest.mark.parametrize(
    "model_type", cases(name for name in ARCHITECTURES if FAMILIES[name].can_lose_heads)
)
def test_whole_heads_can_go(model_type, tmp_path):
    """The first of the first block and the last of others; a block that can lose none keeps all."""
    target = unusual_prunable(model_type, heads=True)
    model, layout = target.model, target.layout
    masks = masks_of("random", layout)
    blocks = layout.blocks
    for name, part in zip(layout.names, layout.split(masks.kept), strict=True):
        if name.endswith("heads"):
            many = len(part)
            part[:] = torch.arange(many) != (0 if "layers.0" in name else many - 1)
            part[:] |= many == 1
    tokens = torch.randint(4, VOCABULARY, (2, 19))
    mask = masks.kept.float().requires_grad_(True)
    with masked(target) as masking:
        masking.set(mask)
        wanted = model(tokens).logits
        token_losses(target, tokens).mean().backward()
    of_heads = [
        part
        for name, part in zip(layout.names, layout.split(mask.grad), strict=True)
        if name.endswith("heads")
    ]
    assert all((part != 0).all() for part in of_heads)
    compact = compact_model(target, masks)
    got = compact(tokens, use_cache=True)
    assert (got.logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert_counted(target, compact, masks)
    for layer, block in zip(got.past_key_values.layers, blocks, strict=True):
        if block.cached and block.heads > 1:
            assert layer.keys.shape[1] == block.heads - 1
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached = compact.generate(tokens[:1], use_cache=True, **options)
    assert torch.equal(cached, compact.generate(tokens[:1], use_cache=False, **options))
    whole = compact_model(target, masks_of("keep-all", layout))
    assert torch.equal(whole(tokens).logits, model(tokens).logits)
    export_folder(target, byte_tokenizer(), masks, tmp_path / "model", "5GB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(again(tokens).logits, compact(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", cases(MIXTURES))
def test_whole_experts_can_go(model_type, tmp_path):
    """Another number of each block; tokens are routed among the others, as in the export."""
    target = unusual_prunable(model_type, branches=True, experts=True)
    model, layout = target.model, target.layout
    tokens = torch.randint(4, VOCABULARY, (2, 19))
    scaled = torch.rand(layout.entries) + 0.5
    kinds = (without_branches(target), *(masks_of("random", layout, seed) for seed in (0, 1)))
    for masks, scales in zip(kinds, (scaled, None, scaled), strict=True):
        mask = masks.kept * (1.0 if scales is None else scales)
        selection = Selection(torch.zeros(layout.entries), Compensation(scales))
        masks = dataclasses.replace(masks, selection=selection)
        with masked(target) as masking:
            masking.set(mask)
            wanted = model(tokens).logits
            masking.set(mask.clone().requires_grad_(True))  # as it is while masks are learned
            torch.testing.assert_close(model(tokens).logits, wanted)
        with fold_into_weights(target, masks):
            compact = compact_model(target, masks)
        assert (compact(tokens).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert_counted(target, compact, masks)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached = compact.generate(tokens[:1], use_cache=True, **options)
    assert torch.equal(cached, compact.generate(tokens[:1], use_cache=False, **options))
    export_folder(target, byte_tokenizer(), masks, tmp_path / "model", "5GB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert set(again.state_dict()) == set(compact.state_dict())


@pytest.mark.parametrize("model_type", cases(MIXTURES))
def test_a_dropped_expert_has_a_gradient(model_type):
    """What it would add to the tokens that the whole router would give it; some it gives to none,
    and so other experts are dropped if need be."""
    target = unusual_prunable(model_type, experts=True)
    assert any(a_dropped_expert_has_a_gradient(target, seed) for seed in range(4))


def a_dropped_expert_has_a_gradient(target: PrunableModel, seed: int) -> bool:
    layout = target.layout
    kept = masks_of("random", layout, seed).kept
    mask = kept.float().requires_grad_(True)
    tokens = torch.randint(4, VOCABULARY, (8, 19))
    with masked(target) as masking:
        masking.set(mask)
        token_losses(target, tokens).mean().backward()
    of_experts = torch.tensor([name.endswith("experts") for name in layout.names])
    dropped = of_experts[layout.site_of_entry] & ~kept
    assert dropped.any()
    assert mask.grad is not None
    return bool(mask.grad[dropped].any())


@pytest.mark.parametrize("model_type", CASES)
def test_whole_branches_can_go(model_type, tmp_path):
    heads = FAMILIES[model_type].can_lose_heads
    target = unusual_prunable(model_type, heads=heads, branches=True)
    model, layout = target.model, target.layout
    scales = torch.rand(layout.entries, generator=torch.Generator().manual_seed(1)) + 0.5
    masks = without_branches(target, scales)
    tokens = torch.randint(4, VOCABULARY, (2, 19))
    with masked(target) as masking:
        masking.set(masks.kept * scales)
        wanted = model(tokens).logits
    with fold_into_weights(target, masks):
        compact = compact_model(target, masks)
    got = compact(tokens, use_cache=True)
    assert (got.logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert_counted(target, compact, masks)
    assert len(list(PrunableModel(compact, target.family).present)) == 2 * len(layout.blocks) - 2
    prompt = tokens[:1]
    options = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached = compact.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, compact.generate(prompt, use_cache=False, **options))
    export_folder(target, byte_tokenizer(), masks, tmp_path / "model", "5GB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert set(again.state_dict()) == set(compact.state_dict())


@pytest.mark.parametrize("model_type", CASES)
def test_cache_holds_what_is_counted(model_type):
    target = tiny_prunable(model_type)
    cache = DynamicCache(config=target.model.config)
    target.model(torch.tensor([[4, 5, 6]]), **with_cache(target.model, cache))
    keys = [getattr(layer, "keys", torch.zeros(0)) for layer in cache.layers]  # a state has none
    values = [getattr(layer, "values", torch.zeros(0)) for layer in cache.layers]
    held = [k.numel() + v.numel() for k, v in zip(keys, values, strict=True)]
    repeats = 2 if model_type == "falcon" else 1  # its two KV heads are repeated first: not counted
    assert held == [3 * block.cached * repeats for block in target.layout.blocks]


STAYS = {
    "stablelm": "input_layernorm",
    "ernie4_5_moe": "e_score_correction_bias",
    "phimoe": "router.weight",
}
"""Norms that serve both branches where these are parallel, and so stay where they are not; and what
only chooses experts (of phimoe where one is far ahead), and then has no gradient."""


@pytest.mark.parametrize("model_type", CASES)
def test_nothing_useless_is_left_of_a_pruned_branch(model_type):
    """A norm that served it alone, and that the row does not name, would have no gradient."""
    for prunable in (tiny_prunable, unusual_prunable):
        target = prunable(model_type, branches=True)
        tokens = torch.randint(4, VOCABULARY, (2, 19))
        compact = compact_model(target, without_branches(target)).requires_grad_(True)
        compact(tokens, labels=tokens).loss.backward()
        parameters = PrunableModel(compact, target.family).blocks.named_parameters()
        useless = [name for name, p in parameters if p.grad is None or not p.grad.any()]
        assert not [name for name in useless if STAYS.get(model_type, " ") not in name]


def test_families_that_cannot_lose_heads_say_so():
    target = tiny_prunable("gpt_neox", heads=True)
    with pytest.raises(InputError, match="gpt_neox cannot lose whole heads"):
        _ = target.layout


@pytest.mark.parametrize("model_type", CASES)
def test_cached_generation_equals_uncached(model_type):
    target = unchanged(model_type)
    compact = compact_model(target, masks_of("random", target.layout))
    prompt = torch.randint(4, VOCABULARY, (1, 7))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = compact.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, compact.generate(prompt, use_cache=False, **options))
    assert compact(prompt, use_cache=True).past_key_values is not None or "cache" in compact(prompt)


@pytest.mark.parametrize("model_type", CASES)
def test_loss_equals_that_of_transformers(model_type):
    """Scaling and soft-capping of the head are columns of the table: a missing one shows here."""
    target = unchanged(model_type)
    tokens = torch.randint(4, VOCABULARY, (2, 19))
    ours = token_losses(target, tokens).mean()
    assert ours == pytest.approx(float(target.model(tokens, labels=tokens).loss), rel=1e-5)


@pytest.mark.parametrize("model_type", CASES)
def test_examples_in_one_window_do_not_see_each_other(model_type):
    """Each costs what it costs alone; where they cannot be kept apart, the first alone counts."""
    target = unchanged(model_type)
    first, second = torch.randint(4, VOCABULARY, (8,)), torch.randint(4, VOCABULARY, (11,))
    examples = [Windows(one[None], torch.arange(len(one))[None] > 2) for one in (first, second)]
    alone = [float(mean_losses(target, one)) for one in examples]
    counted = torch.cat([one.counted for one in examples], 1)
    places = torch.cat([torch.arange(8), torch.arange(11)])[None]
    together = Windows(torch.cat([first, second])[None], counted, places)
    wanted = (5 * alone[0] + 8 * alone[1]) / 13 if target.keeps_apart else alone[0]
    assert float(mean_losses(target, together)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("model_type", CASES)
def test_every_mask_entry_has_a_gradient(model_type):
    """A site whose hook sits on the wrong module would be exported right and never learned."""
    target = unchanged(model_type, branches=True)
    layout = target.layout
    mask = torch.ones(layout.entries, requires_grad=True)
    tokens = torch.randint(4, VOCABULARY, (2, 19))
    with masked(target) as masking:
        masking.set(mask)
        token_losses(target, tokens).mean().backward()
    for name, part in zip(layout.names, layout.split(mask.grad), strict=True):
        assert (part != 0).float().mean() > (0.2 if name.endswith("mlp_mid") else 0.9), name


def test_masking_leaves_nothing_behind():
    target = tiny_prunable("phi")
    model, layout = target.model, target.layout
    tokens = torch.randint(4, VOCABULARY, (1, 9))
    before = model(tokens).logits
    with masked(target) as masking:
        masking.set(torch.zeros(layout.entries))
        assert not torch.equal(model(tokens).logits, before)
    assert torch.equal(model(tokens).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_row_names_every_linear_of_a_block(model_type):
    """A linear layer that no branch names would be neither counted nor cut; Gemma 4 has two that
    stand behind both branches."""
    target = unchanged(model_type)
    family, block = target.family, target.blocks[0]
    named = set(target.linear_paths(block))
    for branch in target.branches_of(block):
        if branch.experts is not None:
            names = ["gate_up_proj", "down_proj"]
            names += [f"{name}_bias" for name in names if "biased" in branch.experts.quirks]
            packed = (f"{branch.experts.module}.{name}" for name in names)
            named |= {branch.experts.rows, *packed, *branch.experts.counted}
    matrices = {
        name.removesuffix(".weight")
        for name, p in block.named_parameters()
        if p.dim() > 1 and "norm" not in name  # one of its own for each head
        if not name.split(".")[-2].endswith(("conv", "conv1d"))
        if not name.startswith("per_layer_")
    }
    vectors = {name for name, p in block.named_parameters() if p.dim() == 1}
    assert named - vectors - set(dict(block.named_buffers())) == matrices
    assert all(f.default is None or getattr(family, f.name) is not None for f in fields(family))


def test_layout_of_grouped_queries_and_biases():
    shape = tiny_prunable("qwen2").layout.blocks[0]
    assert (shape.hidden, shape.qkv, shape.q, shape.num_input_projections, shape.intermediate) == (
        32, 32 + 2 * 16, 32, 2, 48,
    )  # fmt: skip
    assert not shape.biases  # q, k and v have biases, which no selection touches
    of_opt = tiny_prunable("opt").layout.blocks[0].biases
    assert of_opt == {("attn_out",): 1, ("mlp_mid",): 1, ("mlp_out",): 1}
    assert len(SITES) == len(shape.lengths)


def test_unknown_architecture_names_the_nearest_and_the_pages():
    with pytest.raises(InputError) as raised:
        family_of(tiny_config("llama").__class__.__mro__[1](model_type="lama"))
    message = str(raised.value)
    assert "nearest: llama" in message
    assert "docs/architectures.md" in message
    assert "docs/extend.md" in message


def test_post_norm_opt_is_refused():
    with pytest.raises(InputError, match="OPT-350m"):
        family_of(tiny_config("opt", do_layer_norm_before=False))


OTHER = "hy_v3"  # in the tiny configuration all blocks are dense
OTHER_ROWS = """
from disp_llm.models.architectures import Branch, Family

attention = Branch(
    reads=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    writes="self_attn.o_proj", gather="self_attn", scatter="self_attn",
)
gated = Branch(
    reads=("mlp.gate_proj", "mlp.up_proj"), writes="mlp.down_proj", gather="mlp", scatter="mlp"
)
family = Family("layers", attention, gated)
not_a_row = {"blocks": "layers"}
"""


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """Installs a package that adds this row under a `model_type` that has none of ours."""

    def install(row: str) -> None:
        site = tmp_path / "site"
        write_package(site, "other_rows", OTHER_ROWS, "architectures", f"{OTHER} = {row}")
        monkeypatch.syspath_prepend(site)
        monkeypatch.setenv("PYTHONPATH", str(site))

    assert OTHER not in FAMILIES
    yield install
    sys.modules.pop("other_rows", None)


def exported_by(folder: Path) -> torch.Tensor:
    """Exports a tiny model with random masks; its logits, which are those of the masked model."""
    target = tiny_prunable(OTHER)
    masks = masks_of("random", target.layout)
    tokens = torch.tensor([PROMPT])
    with masked(target) as masking:
        masking.set(masks.kept.float())
        wanted = target.model(tokens).logits
    compact = compact_model(target, masks)
    assert (compact(tokens).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert_counted(target, compact, masks)
    export_folder(target, byte_tokenizer(), masks, folder, "5GB")
    return wanted[0]


def test_another_package_adds_a_row_by_an_entry_point(other_package, tmp_path):
    with pytest.raises(InputError, match="'hy_v3' is not supported"):
        family_of(tiny_config(OTHER))
    other_package("other_rows:family")
    assert OTHER in model_types()
    assert "other_rows" not in sys.modules  # it is imported when the row is needed
    wanted = exported_by(tmp_path / "model")
    for without in (False, True):
        found = fresh.load_and_generate(tmp_path / "model", without)
        torch.testing.assert_close(torch.tensor(found["logits"]), wanted, rtol=0, atol=1e-5)
        assert found["class"] == "DispHYV3ForCausalLM"
        assert found["module"].startswith("transformers_modules" if without else "disp_llm.")


def test_a_program_registers_a_row(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, OTHER, FAMILIES["llama"])
    monkeypatch.delitem(FAMILIES, OTHER)  # what the test registers is gone after it
    register_architecture(OTHER, FAMILIES["llama"])
    wanted = exported_by(tmp_path / "model")
    script = (
        "import disp_llm, sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "from disp_llm.models.architectures import FAMILIES, register_architecture\n"
        "register_architecture('hy_v3', FAMILIES['llama'])\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "assert type(model).__module__.startswith('disp_llm.')\n"
        f"torch.save(model(torch.tensor([{PROMPT}])).logits[0], sys.argv[2])"
    )
    done = fresh.run(script, tmp_path / "model", tmp_path / "logits.pt")
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("row", ["other_rows:not_a_row", "other_rows:missing", "nowhere:family"])
def test_a_row_that_cannot_be_loaded_names_its_package(other_package, row):
    other_package(row)
    said = rf"the entry point 'hy_v3' \({row}\) (is no Family|cannot be)"
    with pytest.raises(InputError, match=said):
        family_of(tiny_config(OTHER))
