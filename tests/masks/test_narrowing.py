"""Steps that leave out what is masked: the same numbers, and the same gradient of what is left."""

import pytest
import torch
from configurations import ARCHITECTURES, cases
from conftest import masks_of, tiny_prunable

from disp_llm.masks.masking import masked
from disp_llm.masks.narrowing import Narrowing, kept_of_matrix
from disp_llm.models.architectures import FAMILIES
from disp_llm.training.adapters import Adapters, adapted
from disp_llm.training.losses import token_losses

TOKENS = torch.arange(4, 44).view(2, 20)


def losses_and_gradients(target, kept, computed):
    """With a scale beside every mask, and an adapter and learned weights on every layer."""
    noise = torch.Generator().manual_seed(3)
    adapters = Adapters.begun(target, 2, noise, weights=True)
    with torch.no_grad():
        for up in adapters.up:
            up.normal_(generator=noise)
        for whole in adapters.whole:
            whole.normal_(std=0.02, generator=noise)
    mask = kept.float() * (1 + 0.1 * torch.rand(len(kept), generator=noise))
    mask.requires_grad_()
    with masked(target) as masking, adapted(target, adapters) as adapting:
        masking.set(mask, computed)
        adapting.set()
        with adapting.lifted(), masking.lifted():
            dense = token_losses(target, TOKENS).detach()
        losses = token_losses(target, TOKENS)
        losses.mean().backward()
    return dense, losses.detach(), mask.grad, [p.grad for p in adapters.parameters()]


@pytest.mark.parametrize("model_type", cases(ARCHITECTURES))
def test_what_is_left_out_changes_nothing_else(model_type):
    target = tiny_prunable(model_type, heads=FAMILIES[model_type].can_lose_heads)
    kept = masks_of("random", target.layout).kept
    computed = kept | masks_of("random", target.layout, seed=1).kept
    whole, part = (losses_and_gradients(target, kept, c) for c in (None, computed))
    sites = Narrowing(target).sites  # all but those of experts and of heads
    of_site = torch.tensor([name in sites for name in target.layout.names])
    narrowed = of_site[target.layout.site_of_entry]
    assert (narrowed & ~computed).any()
    for ours, theirs in zip(part[:2], whole[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not part[2][narrowed & ~computed].any()
    seen = computed | ~narrowed
    pairs = [(part[2][seen], whole[2][seen]), *zip(part[3], whole[3], strict=True)]
    for ours, theirs in pairs:  # other sums in the kernels: rounding, which delta rules amplify
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max() + 1e-7


def test_the_model_is_whole_again():
    target = tiny_prunable("gpt2")
    before = target.model(TOKENS).logits
    kept = masks_of("random", target.layout).kept
    with masked(target) as masking:
        masking.set(kept.float(), kept)
        assert not torch.equal(target.model(TOKENS).logits, before)
    assert torch.equal(target.model(TOKENS).logits, before)


def test_memory_lies_as_it_did_before():
    """Weights of what writes lie by columns while single columns of them are left out."""
    target = tiny_prunable("llama")
    kept = masks_of("random", target.layout).kept
    weight = target.blocks[0].mlp.down_proj.weight
    values, strides = weight.clone(), weight.stride()
    with masked(target) as masking:
        masking.set(kept.float(), kept)
        masking.set(kept.float())
        assert target.blocks[0].mlp.down_proj.weight.stride() == (1, len(weight))
        assert torch.equal(weight, values)
    assert weight.stride() == strides
    assert torch.equal(weight, values)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("chunk", [1, 8, 16])
def test_rows_and_columns_are_those_that_are_kept(chunk, by_columns):
    noise = torch.Generator().manual_seed(0)
    stored = torch.randn(48, 32, generator=noise)
    rows = (torch.rand(48, generator=noise) < 0.5).nonzero().squeeze(-1)
    chunks = torch.tensor([0, 1, 3])
    columns = (
        (chunks.unsqueeze(1) * 8 + torch.arange(8)).flatten() if chunk > 1 else rows[rows < 32]
    )
    if chunk == 16:
        columns = torch.arange(16, 32)
    laid = stored.T.contiguous().T if by_columns else stored
    wanted = stored[rows][:, columns]
    assert torch.equal(kept_of_matrix(laid, False, columns, rows), wanted)
    assert torch.equal(kept_of_matrix(laid, True, rows, columns), wanted)
    assert torch.equal(kept_of_matrix(laid, False, None, rows), stored[rows])
    assert torch.equal(kept_of_matrix(laid, False, columns, None), stored[:, columns])
    for some in (columns + 1, torch.tensor([0, 2, 4, 6, 8, 10, 12, 15])):  # no chunks
        some = some[some < 32]
        assert torch.equal(kept_of_matrix(laid, False, some, None), stored[:, some])
