"""How far an exported model is from the masked one, and when that is said."""

import math

import pytest
import torch
from conftest import tiny_model

from disp_llm.evaluation.agreement import WRONG, logit_errors, warn_of_error
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of


def tiny(dtype: torch.dtype, **more: object) -> PrunableModel:
    model = tiny_model("llama", **more).to(dtype).requires_grad_(False)
    return PrunableModel(model, family_of(model.config))


@pytest.mark.parametrize(
    ("errors", "warned"),
    [
        ({}, False),
        ({"max_logit_error": WRONG}, False),
        ({"max_logit_error": 2 * WRONG}, True),
        ({"max_logit_error": math.nan}, True),
        ({"max_logit_error_bfloat16": 1.0}, False),
    ],
)
def test_only_what_rounding_does_not_explain_is_warned_of(errors, warned, caplog):
    warn_of_error(errors, "keep 0.5")
    assert ["keep 0.5" in record.getMessage() for record in caplog.records] == [True] * warned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_shares_of_the_largest_logit(dtype):
    """Logits that are twice as large are off by the whole of the largest."""
    dense, compact = (tiny(dtype, tie_word_embeddings=False) for _ in range(2))
    tokens = torch.arange(4, 24)
    name = str(dtype).removeprefix("torch.")
    names = {"max_logit_error", "max_logit_error_float32", f"max_logit_error_{name}"}
    assert logit_errors(dense, compact, tokens) == dict.fromkeys(names, 0.0)
    compact.model.get_output_embeddings().weight.mul_(2)
    assert logit_errors(dense, compact, tokens) == dict.fromkeys(names, 1.0)
    both = (dense.model, compact.model)
    assert {p.dtype for model in both for p in model.parameters()} == {dtype}


def test_a_block_is_in_float32_only_while_it_runs():
    """So memory holds one block more; afterwards the weights lie where they lay."""
    dense, compact = tiny(torch.bfloat16), tiny(torch.bfloat16)
    places = [parameter.data_ptr() for parameter in dense.model.parameters()]
    seen = []

    def look(block, args):
        seen.append([{p.dtype for p in one.parameters()} for one in dense.blocks])

    for block in dense.blocks:
        block.mlp.register_forward_pre_hook(look)
    logit_errors(dense, compact, torch.arange(4, 24))
    narrow, wide = {torch.bfloat16}, {torch.float32}
    running = [[wide if one is block else narrow for one in dense.blocks] for block in dense.blocks]
    assert seen == [[narrow] * 3] * 3 + running
    assert [parameter.data_ptr() for parameter in dense.model.parameters()] == places


def test_a_router_that_is_kept_in_float32_comes_out_as_it_went_in():
    """Some families have one in a model of bfloat16; a failure on the way changes nothing."""
    targets = tiny(torch.bfloat16), tiny(torch.bfloat16)
    dense, compact = (target.model for target in targets)
    norm = dense.model.norm
    norm.float().weight.add_(1e-4)
    dense.model.norm.register_forward_pre_hook(lambda module, args: args[0].to(norm.weight.dtype))
    dense.lm_head.register_forward_pre_hook(lambda module, args: args[0].to(module.weight.dtype))
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    logit_errors(*targets, torch.arange(4, 24))

    def fail(*args):
        if compact.dtype == torch.float32:
            raise MemoryError

    compact.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        logit_errors(*targets, torch.arange(4, 24))
    assert compact.dtype == torch.bfloat16
    for name, tensor in dense.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name
