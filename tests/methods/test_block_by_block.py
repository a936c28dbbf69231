"""What runs block by block is what the model runs."""

import pytest
import torch
from conftest import tiny_prunable, unusual_prunable

from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.block_by_block import block_inputs, run_block, visit_with


@pytest.mark.parametrize("model_type", ["llama", "xglm", "gpt2", "gemma3_text", "falcon"])
def test_blocks_give_what_they_give_inside_the_model(model_type):
    """XGLM hands its mask to a block by place."""
    require_same(tiny_prunable(model_type))


def test_windows_have_inputs_and_keys_of_their_own():
    """Of Gemma 4: each block is given a part of what each token is embedded as, and the last ones
    take over keys and values."""
    require_same(unusual_prunable("gemma4_text"))


def require_same(target: PrunableModel) -> None:
    model = target.model
    windows = torch.arange(4, 28).view(2, 12)
    states, arguments = block_inputs(target, windows)
    with torch.no_grad():
        for block, given in zip(target.blocks, arguments, strict=True):
            pairs = zip(states, given, strict=True)
            states = [run_block(block, state, of_window) for state, of_window in pairs]
        found = torch.cat(states)
        last = []
        hook = target.blocks[-1].register_forward_hook(lambda module, args, out: last.append(out))
        model(windows)
        hook.remove()
    wanted = last[0][0] if isinstance(last[0], tuple) else last[0]
    torch.testing.assert_close(found, wanted)


def test_what_is_the_same_for_all_windows_is_held_once():
    """Masks and positions; of Gemma 4 not what belongs to the tokens."""
    _, arguments = block_inputs(unusual_prunable("gemma4_text"), torch.arange(4, 28).view(2, 12))
    for first, second in arguments:
        assert first["attention_mask"] is second["attention_mask"]
        assert first["position_embeddings"] is second["position_embeddings"]
        assert not torch.equal(first["per_layer_input"], second["per_layer_input"])
        assert first["shared_kv_states"] is not second["shared_kv_states"]


@torch.no_grad()
def test_a_visit_changes_the_keys_that_later_blocks_take_over():
    """The last block without keys of its own is measured with those of the block that has been
    changed before it: the same as in a model that is changed at once."""
    lender, borrower = 2, 5
    windows = torch.arange(4, 28).view(2, 12)
    found = {}

    def visit(index, block, moments):
        found[index] = moments
        if index == lender:
            block.self_attn.k_proj.weight.mul_(-1)

    visit_with(windows, unusual_prunable("gemma4_text"), visit, progress=lambda done, total: None)
    changed = unusual_prunable("gemma4_text")
    visit(lender, changed.blocks[lender], {})
    seen = {}

    def keep(index, block, moments):
        seen[index] = moments

    nothing = {"progress": lambda done, total: None, "changes": False}
    visit_with(windows, changed, keep, **nothing)
    before: dict = {}
    visit_with(
        windows, unusual_prunable("gemma4_text"), lambda i, b, m: before.update({i: m}), **nothing
    )
    name = "self_attn.o_proj"
    torch.testing.assert_close(found[borrower][name], seen[borrower][name])
    assert not torch.allclose(found[borrower][name], before[borrower][name])
