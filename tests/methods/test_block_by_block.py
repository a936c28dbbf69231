"""What runs block by block is what the model runs."""

import pytest
import torch
from conftest import tiny_model

from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.parts.block_by_block import block_inputs, run_block
from disp_llm.models.architectures import family_of


@pytest.mark.parametrize("model_type", ["llama", "xglm", "gpt2", "gemma3_text", "falcon"])
def test_blocks_give_what_they_give_inside_the_model(model_type):
    """XGLM hands its mask to a block by place."""
    model = tiny_model(model_type)
    target = PrunableModel(model, family_of(model.config))
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
