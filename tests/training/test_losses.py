"""The loss in chunks, whose gradient is taken by hand, against torch's own functions."""

import pytest
import torch
from conftest import tiny_prunable
from torch.nn.functional import cross_entropy, kl_div

from disp_llm.training import losses
from disp_llm.training.losses import Teacher, token_losses

SHARE = 0.3


@pytest.mark.parametrize("share", [None, SHARE, 1.0])
def test_loss_and_gradient_are_those_of_autograd(share, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 5)
    target, other = (tiny_prunable("gemma2", seed=seed) for seed in (0, 1))
    tokens = torch.randint(target.head_weight.shape[0], (2, 9))
    teacher = None if share is None else Teacher(other, share)
    weights = [weight.requires_grad_() for weight in target.blocks[0].parameters()]

    found = token_losses(target, tokens, teacher)
    slopes = torch.autograd.grad(found.square().sum(), weights)

    logits, taught = (one.model(tokens).logits[:, :-1].flatten(0, 1) for one in (target, other))
    expected = cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
    if share is not None:
        wanted, given = taught.detach().log_softmax(-1), logits.log_softmax(-1)
        divergence = kl_div(given, wanted, log_target=True, reduction="none").sum(-1)
        expected = (1 - share) * expected + share * divergence
    torch.testing.assert_close(found.flatten(), expected)
    by_torch = torch.autograd.grad(expected.square().sum(), weights)
    torch.testing.assert_close(slopes, by_torch, rtol=1e-4, atol=1e-4)
