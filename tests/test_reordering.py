"""A model whose channels stand in another order is the same function in other groups."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_model


@pytest.fixture
def reorder(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield __import__("reorder").reorder
    del sys.modules["reorder"]


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_reordered_model_is_the_same_function(reorder, tied):
    model = tiny_model("llama", tie_word_embeddings=tied).double()
    tokens = torch.arange(24).view(2, 12)
    before = model(tokens).logits
    weights = {name: tensor.clone() for name, tensor in model.named_parameters()}
    reorder(model, torch.Generator().manual_seed(3))
    # Its norms are in float32.
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=1e-5)
    for name, tensor in model.named_parameters():
        assert not tensor.equal(weights[name]), name
        assert tensor.flatten().sort().values.equal(weights[name].flatten().sort().values), name
