"""Published numbers, held without any download: models are built on the meta device."""

import pytest
import torch
import transformers

from disp_llm.masks.budget import Budget
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import FAMILIES
from disp_llm.models.loading import empty_model

SIZES = {
    "LLaMA-2-7B": {},
    "LLaMA-2-13B": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
}


def build(name: str) -> tuple[int, Budget]:
    """All parameters, and the budget."""
    model = empty_model(transformers.LlamaConfig(**SIZES[name]))
    empty = PrunableModel(model, FAMILIES["llama"])
    return empty.parameters, Budget(empty.layout)


@pytest.mark.parametrize(
    ("name", "entries", "keep"),
    [("LLaMA-2-7B", 876_544, 0.4797), ("LLaMA-2-13B", 1_372_160, 0.4871)],
)
def test_half_of_all_parameters(name, entries, keep):
    """The released code's p = 0.48 for LLaMA-2-7B is half of the whole model, all included."""
    parameters, budget = build(name)
    assert budget.layout.entries == entries
    outside = parameters - budget.dense_block_parameters
    assert (parameters / 2 - outside) / budget.dense_block_parameters == pytest.approx(
        keep, abs=5e-5
    )


def test_expected_keep_at_the_start_of_reinmax():
    """σ(3) of every site: 0.922 of the block parameters of LLaMA-2-7B; MLP terms are products."""
    _, budget = build("LLaMA-2-7B")
    expected = torch.sigmoid(torch.tensor(3.0, dtype=torch.float64)) * torch.tensor(
        budget.layout.lengths
    )
    assert float(budget.keep(expected)) == pytest.approx(0.922, abs=1e-3)
