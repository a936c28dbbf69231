"""Mixtures of experts that run masked.

Intermediate dimensions are multiplied by their mask inside of each expert. A dropped expert (a mask
of 0) is not there for the router either: tokens are routed by a router that has the rows of the
kept experts alone, which is the one that is exported, so that softmax, sigmoid and top-k are the
same to the bit. What a token is given is multiplied by its expert's mask, which therefore has a
gradient.

That gradient alone would tell nothing of a dropped expert, which no token reaches. Where masks are
learned, tokens also run through the dropped experts that the whole router would choose for them,
times a mask of 0: what they would add has a gradient, and so they can come back.

N tokens, E experts, C chosen by each token, F intermediate.
"""

import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from disp_llm.compact.experts_disp_llm import (
    keep_experts,
    matrices_of,
    run_experts,
    run_scored_experts,
)
from disp_llm.models.family import Experts


class MaskedMixture:
    """The experts of one block, which run masked until `restore`."""

    def __init__(self, block: nn.Module, columns: Experts):
        self._row = asdict(columns)
        self._experts: Any = block.get_submodule(columns.module)
        router = block.get_submodule(columns.router)
        self._scores_inputs = "scores_inputs" in columns.quirks
        self._middle: Any = None
        self._of_experts: Tensor | None = None
        self._kept: Any = None
        self._ghosts: Tensor | None = None
        run = self._run_scored if self._scores_inputs else self._run
        self._experts.__dict__["forward"] = run
        self._hook: RemovableHandle = router.register_forward_hook(self._route)

    def set(self, middle: Tensor, experts: Tensor | None) -> None:
        """Lays the masks of all intermediate dimensions, expert by expert, and of whole experts
        where these are a site."""
        self._middle = middle.unflatten(0, (len(self._experts.gate_up_proj), -1))  # (E, F)
        self._of_experts, self._kept, self._ghosts = experts, None, None
        if experts is None or bool((experts != 0).all()):
            return
        kept = experts.detach().nonzero().squeeze(-1)
        if len(kept):  # else the whole branch is dropped, and what it gives is multiplied by 0
            self._kept = kept
            # Dropped experts take part where these are to have a gradient.
            self._ghosts = (experts.detach() == 0) if experts.requires_grad else None

    def restore(self) -> None:
        """Takes everything off again."""
        self._hook.remove()
        del self._experts.__dict__["forward"]

    def _route(self, router: Any, args: tuple, output: tuple) -> tuple:
        """Forward hook of the router: (…, factors (N, C), indices (N, C)) of kept experts alone, or
        the other way round, as older transformers have it for Granite; of Llama 4 the scores of all
        experts, (N, E)."""
        if self._kept is None:
            return output
        hidden, *of_experts = args
        of_kept = [numbers[..., self._kept] for numbers in of_experts]
        found = self._cut(router).forward(hidden, *of_kept)
        if self._scores_inputs:
            scores = torch.zeros_like(output[0]).index_copy(1, self._kept, found[0])
            if self._ghosts is not None:
                scores = scores + output[0] * self._ghosts
            return (scores, *output[1:])
        way = 1 if output[0].is_floating_point() else -1
        *others, factors, chosen = output[::way]
        *_, kept_factors, own = found[::way]
        kept = self._kept[own]
        if self._ghosts is not None:
            dropped = self._ghosts[chosen]
            kept_factors = torch.cat([kept_factors, factors * dropped], -1)
            kept = torch.cat([kept, chosen.where(dropped, -1)], -1)  # no expert, where it is kept
        return (*others, kept_factors, kept)[::way]

    def _cut(self, router: Any) -> Any:
        """The router of the kept experts alone, made when the whole one runs: its weights may be
        there only then, and may have been cast, or folded, since masks were set."""
        small = copy.deepcopy(router, {id(self): self})  # its hook is a method of this
        reads = matrices_of(self._experts, self._row)[0].shape[2]
        keep_experts(small, self._row, self._kept, reads, place=self._row["router"])
        return small

    def _run(self, hidden: Tensor, chosen: Tensor, factors: Tensor) -> Tensor:
        """What the experts add to tokens, masked; (N, K)."""
        middle = self._middle

        def on_middle(inside: Tensor, expert: int, token: Tensor) -> Tensor:
            return inside * middle[expert].to(inside.dtype)

        if self._of_experts is not None:
            factors = factors * self._of_experts[chosen].to(factors.dtype)
        return run_experts(self._experts, self._row, hidden, chosen, factors, on_middle)

    def _run_scored(self, hidden: Tensor) -> Tensor:
        """The same where every expert reads all tokens, times their scores; (E·N, K)."""
        middle = self._middle[:, None]

        def on_middle(inside: Tensor) -> Tensor:
            return inside * middle.to(inside.dtype)

        made = run_scored_experts(self._experts, self._row, hidden, on_middle)
        if self._of_experts is None:
            return made
        mask = self._of_experts[:, None, None].to(made.dtype)
        return (made.unflatten(0, (len(mask), -1)) * mask).flatten(0, 1)
