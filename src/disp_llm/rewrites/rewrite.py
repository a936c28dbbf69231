"""What every rewriting method returns and uses.

A rewriting method prepares itself once, mostly by a walk over calibration text, and then makes a
model of any size. What it returns runs as it is: cut, factorised or rotated layers are real, so
that perplexity and milliseconds are those of the thing itself.

K inputs of a layer.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.families import Family
from disp_llm.learn import Task
from disp_llm.masks import blocks_of


@dataclass(frozen=True)
class Rewritten:
    """A model of one size, and what it costs, in numbers of the model's dtype."""

    model: PreTrainedModel
    stored: int | float
    """Inside the blocks, in place of the linear layers' weights; indices count by their bits."""
    multiplied: int | float
    """Multiplications a token inside the blocks; half of its FLOPs."""


Maker = Callable[[float], Rewritten]
"""The share of block parameters that is stored -> a model. Raises InputError for a share that the
method cannot give."""


def copied(task: Task) -> PreTrainedModel:
    """The dense model, to be rewritten in place."""
    return copy.deepcopy(task.model)


def as_stored(model: PreTrainedModel, family: Family) -> Rewritten:
    """A model each of whose stored numbers is multiplied once a token."""
    numbers = stored_numbers(model, family)
    return Rewritten(model, numbers, numbers)


def damped(moment: Float[Tensor, "K K"], share: float) -> Float[Tensor, "K K"]:
    """In float64, with a share of the mean of its diagonal added to the diagonal: inputs may be
    dependent, or 0 throughout."""
    floor = torch.finfo(moment.dtype).tiny
    moment = moment.double()
    added = (share * moment.diagonal().mean()).clamp(min=floor)
    return moment + added * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def linear_paths(family: Family) -> tuple[str, ...]:
    """Linear layers of a block in the order in which they run."""
    return tuple(
        path for branch in (family.attention, family.mlp) for path in (*branch.reads, branch.writes)
    )


def stored_numbers(model: PreTrainedModel, family: Family) -> int:
    """Numbers in the blocks' matrices, whatever layers hold them; norms and biases do not count."""
    return sum(p.numel() for p in blocks_of(model, family).parameters() if p.dim() > 1)
