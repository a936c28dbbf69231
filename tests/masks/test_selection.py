"""Selection files: what was written is what is read, and nothing damaged is."""

import pytest
import torch
from conftest import masks_of, run_in, tiny_prunable
from damage import BYTES, names, outcome, rewrite

from disp_llm.config.errors import InputError
from disp_llm.masks.selection import Adapter, Compensation, Masks, Selection
from disp_llm.masks.selection_file import (
    add_masks,
    has_masks,
    kept_by_site,
    load_masks,
    load_selection,
    save_selection,
)

ONE, LOGITS = "kept__0.5__layers__1__attn_in", "logits__layers__1__attn_in"


@pytest.fixture(scope="module")
def layout():
    return tiny_prunable("llama").layout


@pytest.fixture
def path(layout, tmp_path):
    generator = torch.Generator().manual_seed(1)
    inputs = sum(block.q + block.intermediate for block in layout.blocks)
    selection = Selection(
        torch.randn(layout.entries, generator=generator),
        Compensation(torch.rand(layout.entries, generator=generator), torch.randn(inputs)),
    )
    masks = Masks(layout, masks_of("random", layout).kept, selection)
    path = run_in(tmp_path).selection_file
    save_selection(path, selection, layout, {"0.5": masks})
    found = load_masks(path, layout, "0.5")
    assert torch.equal(found.kept, masks.kept)
    assert torch.equal(found.selection.importance, selection.importance)
    assert torch.equal(found.compensation.mean_inputs, selection.compensation.mean_inputs)
    return path


CHANGES = {
    "a site is missing": {ONE: None},
    "a site of another model": {"kept__0.5__layers__3__attn_in": torch.arange(3)},
    "of another dtype": {ONE: torch.arange(3, dtype=torch.int32)},
    "floats": {ONE: torch.arange(3.0)},
    "in another order": {ONE: torch.tensor([2, 1, 3])},
    "repeated": {ONE: torch.tensor([1, 2, 2])},
    "negative": {ONE: torch.tensor([-1, 2])},
    "beyond the width": {ONE: torch.tensor([1, 32])},
    "in two dimensions": {ONE: torch.tensor([[1, 2]])},
    "logits are missing": {LOGITS: None},
    "logits of another length": {LOGITS: torch.zeros(31)},
    "logits of another dtype": {LOGITS: torch.zeros(32, dtype=torch.float64)},
    "logits that are not finite": {LOGITS: torch.full((32,), torch.inf)},
    "a scale is missing": {"scales__layers__0__attn_in": None},
    "scales that are not finite": {"scales__layers__0__mlp_in": torch.full((32,), torch.nan)},
    "means of another length": {"means": torch.zeros(3)},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_tensor_that_is_not_as_declared(path, layout, what):
    rewrite(path, **CHANGES[what])
    found = outcome(lambda: load_masks(path, layout, "0.5"))
    assert names(found, path)
    assert "damaged" in found.what


@pytest.mark.parametrize("how", BYTES)
def test_a_damaged_file(path, layout, how):
    path.write_bytes(BYTES[how](path.read_bytes()))
    assert names(outcome(lambda: load_masks(path, layout, "0.5")), path)
    assert names(outcome(lambda: kept_by_site(path, "0.5")), path)
    path.unlink()
    assert names(outcome(lambda: load_masks(path, layout, "0.5")), path)
    path.mkdir()
    assert names(outcome(lambda: load_masks(path, layout, "0.5")), path)


def test_numbers_that_are_not_finite_are_never_written(layout, tmp_path):
    importance = torch.zeros(layout.entries).index_fill(0, torch.tensor([5]), torch.nan)
    with pytest.raises(InputError, match="method: gave numbers that are not finite"):
        save_selection(tmp_path / "selection.safetensors", Selection(importance), layout, {})
    assert not list(tmp_path.iterdir())


def test_nor_are_scales_and_adapters(layout, tmp_path):
    path, ones = tmp_path / "selection.safetensors", torch.ones(layout.entries)
    for wrong in (
        Compensation(scales=ones * torch.nan),
        Compensation(mean_inputs=ones * torch.inf),
        Compensation(adapters=(Adapter(ones[:, None], ones[None] / 0),)),
    ):
        with pytest.raises(InputError, match="gave numbers that are not finite"):
            save_selection(path, Selection(ones, wrong), layout, {})
        assert not path.exists()


def test_adapters_are_read_as_they_were_written(layout, tmp_path):
    adapters = tuple(Adapter(torch.rand(2, 3), torch.rand(4, 2)) for _ in range(2))
    selection = Selection(torch.zeros(layout.entries), Compensation(adapters=adapters))
    save_selection(tmp_path / "selection.safetensors", selection, layout, {})
    found = load_selection(tmp_path / "selection.safetensors", layout).compensation.adapters
    for own, other in zip(found, adapters, strict=True):
        assert torch.equal(own.down, other.down)
        assert torch.equal(own.up, other.up)


def test_another_size_leaves_the_rest_as_it_was(path, layout):
    first, others = load_masks(path, layout, "0.5"), masks_of("keep-all", layout)
    assert has_masks(path, first, "0.5")
    assert not has_masks(path, others, "0.5")
    assert names(outcome(lambda: load_masks(path, layout, "1")), path)
    add_masks(path, others, "1", path)
    assert load_masks(path, layout, "1").kept.all()
    assert torch.equal(load_masks(path, layout, "0.5").kept, first.kept)
    assert torch.equal(load_selection(path, layout).importance, first.selection.importance)


def test_kept_indices_are_read_where_no_model_is_at_hand(path, layout):
    (found, full), wanted = kept_by_site(path, "0.5"), load_masks(path, layout, "0.5").indices()
    assert found.keys() == set(layout.sites)
    assert full == {site: list(widths) for site, widths in layout.widths.items()}
    for site, blocks in found.items():
        assert len(blocks) == len(layout.blocks)
        for i, kept in enumerate(blocks):
            assert torch.equal(kept, wanted[f"layers.{i}.{site}"])


def test_the_cache_shrinks_by_heads_where_whole_attentions_may_go_too():
    """Of three blocks one has lost half of its heads, and one its attention."""
    layout = tiny_prunable("llama", heads=True, branches=True).layout
    kept = torch.ones(layout.entries, dtype=torch.bool)
    layout.named(kept)["layers.0.heads"][1] = False
    layout.named(kept)["layers.2.attention"][0] = False
    masks = Masks(layout, layout.without_dropped(kept), Selection(kept.float()))
    assert masks.kv_cache == pytest.approx((1 / 2 + 1 + 0) / 3)
