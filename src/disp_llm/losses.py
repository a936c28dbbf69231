"""Next-token cross-entropy without a `tokens × vocabulary` tensor.

The model is frozen, so the head's gradient towards the hidden states can be taken in the forward
pass, a chunk of tokens at a time, and kept in place of the logits: the same two matrix products as
usual, and the memory of one chunk.

B batch, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from disp_llm.families import Family

CHUNK = 256
"""Tokens whose logits exist at one time."""


def head_of(model: PreTrainedModel, family: Family) -> Callable[[Tensor], Tensor]:
    """Hidden states (..., D) -> logits (..., V) in float32, with the family's scaling."""
    output = model.get_output_embeddings()
    assert output is not None, "a causal model without a head"
    divisor = getattr(model.config, family.logits_divisor) if family.logits_divisor else None
    softcap = getattr(model.config, family.logits_softcap) if family.logits_softcap else None

    def head(hidden: Tensor) -> Tensor:
        logits = output(hidden)
        if divisor is not None:
            logits = logits / divisor
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return logits.float()

    return head


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, targets: Tensor, head: Callable) -> Tensor:
        losses, gradients = [], []
        for states, wanted in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            with torch.enable_grad():
                leaf = states.detach().requires_grad_(ctx.needs_input_grad[0])
                loss = nn.functional.cross_entropy(head(leaf), wanted, reduction="none")
                if ctx.needs_input_grad[0]:
                    gradients.append(torch.autograd.grad(loss.sum(), leaf)[0])
            losses.append(loss.detach())
        ctx.gradient = torch.cat(gradients) if gradients else None
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * grad_outputs[0].unsqueeze(-1).to(ctx.gradient.dtype), None, None


def token_losses(
    model: PreTrainedModel, head: Callable[[Tensor], Tensor], tokens: Int[Tensor, "B T"]
) -> Float[Tensor, "B T-1"]:
    """−ln p of each token but the first of every window, in float32."""
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state  # (B, T, D)
    states = hidden[:, :-1].flatten(0, 1)
    losses = _ChunkedLoss.apply(states, tokens[:, 1:].flatten(), head)
    return losses.view(len(tokens), -1)
