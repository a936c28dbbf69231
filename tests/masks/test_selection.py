"""Masks files: what was written is what is read, and nothing damaged is."""

import pytest
import torch
from conftest import masks_of, tiny_prunable
from damage import BYTES, names, outcome, rewrite

from disp_llm.config.errors import InputError
from disp_llm.masks.selection import (
    Adapter,
    Compensation,
    Masks,
    Selection,
    kept_by_site,
    load_masks,
)

ONE, LOGITS = "layers__1__attn_in", "logits__layers__1__attn_in"


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
    masks.save(tmp_path / "masks.safetensors")
    found = load_masks(tmp_path / "masks.safetensors", layout)
    assert torch.equal(found.kept, masks.kept)
    assert torch.equal(found.selection.importance, selection.importance)
    assert torch.equal(found.compensation.mean_inputs, selection.compensation.mean_inputs)
    return tmp_path / "masks.safetensors"


CHANGES = {
    "a site is missing": {ONE: None},
    "a site of another model": {"layers__3__attn_in": torch.arange(3)},
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
    found = outcome(lambda: load_masks(path, layout))
    assert names(found, path)
    assert "damaged" in found.what


@pytest.mark.parametrize("how", BYTES)
def test_a_damaged_file(path, layout, how):
    path.write_bytes(BYTES[how](path.read_bytes()))
    assert names(outcome(lambda: load_masks(path, layout)), path)
    assert names(outcome(lambda: kept_by_site(path, {"attn_in": 32})), path)
    path.unlink()
    assert names(outcome(lambda: load_masks(path, layout)), path)
    path.mkdir()
    assert names(outcome(lambda: load_masks(path, layout)), path)


def test_numbers_that_are_not_finite_are_never_written(layout, tmp_path):
    importance = torch.zeros(layout.entries).index_fill(0, torch.tensor([5]), torch.nan)
    masks = Masks(layout, torch.ones(layout.entries, dtype=torch.bool), Selection(importance))
    with pytest.raises(InputError, match="method: gave numbers that are not finite"):
        masks.save(tmp_path / "masks.safetensors")
    assert not list(tmp_path.iterdir())


def test_adapters_are_written_where_that_is_asked_for(layout, tmp_path):
    adapters = tuple(Adapter(torch.rand(2, 3), torch.rand(4, 2)) for _ in range(2))
    selection = Selection(torch.zeros(layout.entries), Compensation(adapters=adapters))
    masks = Masks(layout, masks_of("random", layout).kept, selection)
    for asked, written in ((True, adapters), (False, ())):
        path = tmp_path / f"{asked}.safetensors"
        masks.save(path, with_adapters=asked)
        found = load_masks(path, layout).compensation.adapters
        assert len(found) == len(written)
        for own, other in zip(found, written, strict=True):
            assert torch.equal(own.down, other.down)
            assert torch.equal(own.up, other.up)


def test_kept_indices_are_read_where_no_model_is_at_hand(path, layout):
    widths = dict(zip(layout.sites, layout.blocks[0].lengths, strict=True))
    found, wanted = kept_by_site(path, widths), load_masks(path, layout).indices()
    assert list(found) == list(layout.sites)
    for site, blocks in found.items():
        assert len(blocks) == len(layout.blocks)
        for i, kept in enumerate(blocks):
            assert torch.equal(kept, wanted[f"layers.{i}.{site}"])
