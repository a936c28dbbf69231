"""Mixtures of experts that run masked.

Intermediate dimensions are multiplied by their mask inside each expert. The router does not see a
dropped expert (mask 0): tokens are routed by a router with the rows of the kept experts only. The
exported model has the same router, so softmax, sigmoid and top-k agree to the bit. An expert's
output is multiplied by the expert's mask, which gives the mask a gradient.

A dropped expert gets no such gradient, since no token reaches it. While masks are learned, tokens
therefore also run through the dropped experts that the whole router would choose, times a mask of
0. What they would add has a gradient, so dropped experts can return.

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
    """The experts of one block; they run masked until `restore`."""

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
        """Sets the masks of all intermediate dimensions, expert by expert, and of whole experts if
        these are a site."""
        self._middle = middle.unflatten(0, (len(self._experts.gate_up_proj), -1))  # (E, F)
        self._of_experts, self._kept, self._ghosts = experts, None, None
        if experts is None or bool((experts != 0).all()):
            return
        kept = experts.detach().nonzero().squeeze(-1)
        if len(kept):  # else the whole branch is dropped, and its output is multiplied by 0
            self._kept = kept
            # Dropped experts take part if their masks need a gradient.
            self._ghosts = (experts.detach() == 0) if experts.requires_grad else None

    def restore(self) -> None:
        """Removes the masks and hooks."""
        self._hook.remove()
        del self._experts.__dict__["forward"]

    def _route(self, router: Any, args: tuple, output: tuple) -> tuple:
        """Forward hook of the router: returns (…, factors (N, C), indices (N, C)) of kept experts
        only, in reverse order for Granite in older transformers. For Llama 4 it returns the scores
        of all experts first, (N, E)."""
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
            kept = torch.cat([kept, chosen.where(dropped, -1)], -1)  # kept experts run above
        return (*others, kept_factors, kept)[::way]

    def _cut(self, router: Any) -> Any:
        """Returns a router of the kept experts only, made when the whole router runs: only then may
        its weights be there, and they may have been cast or folded since masks were set."""
        small = copy.deepcopy(router, {id(self): self})  # the hook is a method of this object
        reads = matrices_of(self._experts, self._row)[0].shape[2]
        keep_experts(small, self._row, self._kept, reads, place=self._row["router"])
        return small

    def _run(self, hidden: Tensor, chosen: Tensor, factors: Tensor) -> Tensor:
        """Returns the masked output of the experts, (N, K)."""
        middle = self._middle

        def on_middle(inside: Tensor, expert: int, token: Tensor) -> Tensor:
            return inside * middle[expert].to(inside.dtype)

        if self._of_experts is not None:
            factors = factors * self._of_experts[chosen].to(factors.dtype)
        return run_experts(self._experts, self._row, hidden, chosen, factors, on_middle)

    def _run_scored(self, hidden: Tensor) -> Tensor:
        """As `_run`, where every expert reads all tokens times their scores; (E·N, K)."""
        middle = self._middle[:, None]

        def on_middle(inside: Tensor) -> Tensor:
            return inside * middle.to(inside.dtype)

        made = run_scored_experts(self._experts, self._row, hidden, on_middle)
        if self._of_experts is None:
            return made
        mask = self._of_experts[:, None, None].to(made.dtype)
        return (made.unflatten(0, (len(mask), -1)) * mask).flatten(0, 1)
