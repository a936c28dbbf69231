"""Mixtures of experts that run masked.

Intermediate dimensions are multiplied by their mask inside of each expert. A dropped expert (a mask
of 0) is not there for the router either: tokens are routed by a router that has the rows of the
kept experts alone, which is the one that is exported, so that softmax, sigmoid and top-k are the
same to the bit. What a token is given is multiplied by its expert's mask, which therefore has a
gradient.

That gradient alone would tell nothing of a dropped expert, which no token reaches. Where masks are
learned, tokens also run through the dropped experts that the whole router would choose for them,
times a mask of 0: what they would add has a gradient, and so they can come back.

B sequences, N tokens of all, E experts, C chosen by each token, F intermediate.
"""

import copy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from disp_llm.compact.experts_disp_llm import (
    keep_experts,
    matrices_of,
    run_experts,
    run_scored_experts,
)
from disp_llm.models.family import Experts


@dataclass(frozen=True)
class MaskedMixture:
    """The experts of one block, with their masks laid on them."""

    experts: Any
    router: Any
    row: dict
    """Columns of `Experts`."""

    @classmethod
    def of(cls, block: nn.Module, row: Experts) -> "MaskedMixture":
        """The mixture of a block; from now on it runs masked."""
        made = cls(block.get_submodule(row.module), block.get_submodule(row.router), asdict(row))
        run = _masked_scored_experts if "scores_inputs" in row.quirks else _masked_experts
        made.experts.__dict__["forward"] = partial(run, made.experts, made.row)
        return made

    def set(self, middle: Tensor, experts: Tensor | None) -> None:
        """Lays the masks of all intermediate dimensions, expert by expert, and of whole experts
        where these are a site; each with or without a dimension of sequences before."""
        count = len(self.experts.gate_up_proj)
        self.experts.__dict__["disp_mask_middle"] = middle.unflatten(-1, (count, -1))
        self.experts.__dict__["disp_mask_experts"] = experts
        self.router.__dict__.pop("disp_among", None)
        if experts is None or bool((experts != 0).all()):
            return
        assert experts.dim() == 1, "sequences that drop different experts cannot run together"
        kept = experts.detach().nonzero().squeeze(-1)
        if len(kept):  # else the whole branch is dropped, and what it gives is multiplied by 0
            ghosts = (experts.detach() == 0) if experts.requires_grad else None
            reads = matrices_of(self.experts, self.row)[0].shape[2]
            self.router.__dict__["disp_among"] = _Among(self.row, reads, kept, ghosts)

    def restore(self) -> None:
        """Takes everything off again."""
        for name in ("forward", "disp_mask_middle", "disp_mask_experts"):
            self.experts.__dict__.pop(name, None)
        self.router.__dict__.pop("disp_among", None)


@dataclass(frozen=True)
class _Among:
    """Routing among the kept experts."""

    row: dict
    """Columns of `Experts`."""
    reads: int
    """Dimensions that the router reads."""
    kept: Tensor
    """Indices of the kept experts."""
    ghosts: Tensor | None
    """Which experts are dropped, (E), where these are to have a gradient."""

    def cut(self, router: Any) -> Any:
        """The router of the kept experts alone, made when the whole one runs: its weights may be
        there only then, and may have been cast, or folded, since masks were set."""
        small = copy.deepcopy(router)
        keep_experts(small, self.row, self.kept, self.reads, place=self.row["router"])
        return small

    def scores(self, router: Any, hidden: Tensor, whole: Tensor) -> Tensor:
        """(N, E) those of the kept experts and, where dropped ones are to have a gradient, those
        that the whole router gives these."""
        kept, *_ = self.cut(router).forward(hidden)
        found = torch.zeros_like(whole).index_copy(1, self.kept, kept)
        return found if self.ghosts is None else found + whole * self.ghosts


def route(router: Any, args: tuple, output: tuple) -> tuple:
    """Forward hook of a router: (…, factors (N, C), indices (N, C)) of kept experts alone, or the
    other way round, as older transformers have it for Granite."""
    among = router.__dict__.get("disp_among")
    if among is None:
        return output
    if "scores_inputs" in among.row.get("quirks", ()):
        return (among.scores(router, *args, output[0]), *output[1:])
    way = 1 if output[0].is_floating_point() else -1
    *others, factors, chosen = output[::way]
    hidden, *of_experts = args
    of_kept = [numbers[..., among.kept] for numbers in of_experts]
    *_, kept_factors, own = among.cut(router).forward(hidden, *of_kept)[::way]
    kept = among.kept[own]
    if among.ghosts is not None:
        dropped = factors * among.ghosts[chosen]
        kept_factors, kept = torch.cat([kept_factors, dropped], -1), torch.cat([kept, chosen], -1)
    return (*others, kept_factors, kept)[::way]


def _masked_experts(
    experts: Any, row: dict, hidden: Tensor, chosen: Tensor, factors: Tensor
) -> Tensor:
    """What the experts add to tokens, masked; (N, K)."""
    middle, of_experts = experts.disp_mask_middle, experts.disp_mask_experts
    sequence = None
    if middle.dim() > 2:  # a mask of its own for each sequence
        sequence = torch.arange(len(hidden), device=hidden.device) // (len(hidden) // len(middle))

    def on_middle(inside: Tensor, expert: int, token: Tensor) -> Tensor:
        mask = middle[expert] if sequence is None else middle[sequence[token], expert]
        return inside * mask.to(inside.dtype)

    if of_experts is not None:
        mask = of_experts[chosen] if sequence is None else of_experts[sequence[:, None], chosen]
        factors = factors * mask.to(factors.dtype)
    return run_experts(experts, row, hidden, chosen, factors, on_middle)


def _masked_scored_experts(experts: Any, row: dict, hidden: Tensor) -> Tensor:
    """The same of experts that read all tokens, expert by expert, times their scores; (E·N, K)."""
    middle, of_experts = experts.disp_mask_middle, experts.disp_mask_experts
    count = middle.shape[-2]
    tokens = len(hidden) // count

    def of_tokens(mask: Tensor) -> Tensor:
        """(E, …), or (B, E, …) of each sequence -> (E, 1 or N, …)."""
        if middle.dim() == 2:
            return mask[:, None]
        return mask.repeat_interleave(tokens // len(mask), 0).transpose(0, 1)

    made = run_scored_experts(
        experts, row, hidden, lambda inside: inside * of_tokens(middle).to(inside.dtype)
    )
    if of_experts is None:
        return made
    mask = of_tokens(of_experts).to(made.dtype)
    return (made.unflatten(0, (count, -1)) * mask[..., None]).flatten(0, 1)
