"""Týr-the-Pruner (arXiv 2503.09657): prunes each layer to several sizes, then searches among them.

Both layers that write to the residual stream lose inputs: the attention's whole KV heads, and the
MLP's channels. With W (inputs × outputs) of the dense model, `H = Σ x·xᵀ` of its inputs with 1 % of
its mean diagonal added, and `Γ = H·W`,

- the inputs p with the least `|Γ_p·W_p| + ‖W_p‖² / (2·[H⁻¹]_pp)`, summed over a head, are pruned
  one head or sixteen channels at a time, and each time all others make up for them (optimal brain
  surgeon). The weights kept at a size are then solved, `W_S = (H_SS)⁻¹·Γ_S`;
- each layer is pruned to up to nine sizes around its current one, at first the same for all. Later
  layers read the mean of what these sizes give, weighted by the share that each keeps;
- an evolutionary search with one parent exchanges sizes: one layer gets a step more, another of its
  kind a step less. It lowers the divergence from the dense model, over its 8,192 likeliest tokens;
- all of this runs once more, in half steps around the sizes found.

The search reads the calibration text that gives H, as in the authors' release. To suit two cores,
there are two rounds in place of the paper's four, of 12 generations of 8 children in place of 50 of
128, chosen in two stages. One KV head and some channels stay in every block.

K inputs of a layer, D residual stream, H KV heads, N entries of all sites, W windows of T tokens.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from disp_lab.parts.baseline import Baseline, Maker, models_of, require_one_kind
from disp_lab.parts.coupled import channels_within, flat_of
from disp_llm.compact.modeling_disp_llm import linear_at, matrix_of
from disp_llm.config.errors import InputError
from disp_llm.data.randomness import random_stream
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.block_by_block import SecondMoments, Visit, visit_with
from disp_llm.methods.compensating import DAMPING, damped
from disp_llm.training.problem import PruningProblem, calibration_windows

CHANNELS = 16
"""Channels pruned at a time, before the others are scored anew."""

EACH_WAY = 4
"""Sizes of a layer above its current one, and as many below."""

STEPS = (8, 16)
"""Of each round: all channels of a block divided by this lie between neighbouring sizes."""

GENERATIONS = 12
CHILDREN = 8
MOST_EXCHANGES = 4
"""Most exchanges per child; their number is the smaller of two draws from 1 to this."""

STAGES = ((512, 2), (4096, 1))
"""For each stage: tokens on which children are compared, and how many survive. The parent joins in
the last."""

LIKELIEST = 8192
"""Number of tokens, the dense model's likeliest, over which the divergence is taken."""

Counts = tuple[tuple[int, ...], tuple[int, ...]]
"""Numbers of KV heads and of channels that each block keeps."""


@dataclass(frozen=True)
class Level:
    """A writing layer, pruned to one size."""

    kept: Bool[Tensor, " K"]
    solved: Float[Tensor, "D _"]
    """Its kept columns, solved for the full output."""

    @property
    def matrix(self) -> Float[Tensor, "D K"]:
        """The whole matrix, with zeros in the pruned columns."""
        full = self.solved.new_zeros(len(self.solved), len(self.kept))
        full[:, self.kept] = self.solved
        return full


def tyr(problem: PruningProblem) -> Maker:
    """Makes compact models of any share, each by its own search."""
    return models_of(problem, solve)


def solve(
    problem: PruningProblem, pruned: PrunableModel, layout: Layout, share: float
) -> Float[Tensor, " N"]:
    """Searches the size of every layer and prunes a copy of the dense model to them, in place.
    Returns 1 for each kept entry, on the CPU."""
    counts, windows = evenly(problem, layout, share), calibration_windows(problem).tokens
    noise, channels = random_stream("start", problem.seed), layout.blocks[0].intermediate
    found = torch.ones(layout.entries)
    for number, part in enumerate(STEPS, start=1):
        supernet = Supernet(pruned, layout, (1, max(channels // part, 1)))
        supernet.fill(problem, windows, counts)
        search = Search(problem, supernet, windows)
        counts = search.best(counts, noise, f"searching {number}/{len(STEPS)}")
        supernet.set(counts)
        found = supernet.kept(counts)
    return found.cpu()


def evenly(problem: PruningProblem, layout: Layout, share: float) -> Counts:
    """Returns as many KV heads as the share holds, at least one per block, and the channels that
    the rest of the budget has room for, both spread over the blocks as evenly as whole ones can be.

    Raises:
        InputError: blocks are not alike, or one is left without channels.
    """
    require_one_kind(problem)
    shape, blocks = layout.blocks[0], len(layout.blocks)
    if len({(one.lengths, one.qkv, one.borrows) for one in layout.blocks}) > 1:
        raise InputError(
            "blocks of several widths cannot exchange parts",
            field="model",
            hint="use another method",
        )
    heads = max(int(share * blocks * shape.heads + 1e-9), blocks)
    channels = channels_within(shape, share, heads, blocks)
    # Channels are dealt out in parts that divide a block's, half the least step at most.
    part = math.gcd(shape.intermediate, max(shape.intermediate // (2 * STEPS[-1]), 1))
    if channels // part < blocks:
        raise InputError("leaves no intermediate channel", field="keep", hint="ask for more")
    return _spread(heads, blocks), tuple(part * n for n in _spread(channels // part, blocks))


def _spread(total: int, places: int) -> tuple[int, ...]:
    return tuple((i + 1) * total // places - i * total // places for i in range(places))


@dataclass(frozen=True)
class Supernet:
    """A copy of the dense model whose writing layers can be set to any of their sizes."""

    model: PrunableModel
    layout: Layout
    steps: tuple[int, int]
    """Step between sizes of the attention (in KV heads) and of the MLP (in channels)."""
    levels: tuple[list[dict[int, Level]], ...] = field(default_factory=lambda: ([], []))
    """For attentions and for MLPs: each block's writing layer by size."""
    current: dict[tuple[int, int], int] = field(default_factory=dict)
    """Current size of each layer, by block and kind."""

    def fill(self, problem: PruningProblem, windows: Int[Tensor, "W T"], counts: Counts) -> None:
        """Prunes every layer to sizes around `counts`, block by block."""
        original = problem.dense

        def prune(kind: int) -> Visit:
            def visit(index: int, block: nn.Module, moments: SecondMoments) -> None:
                path = self.model.branches_of(block)[kind].writes
                weight = matrix_of(linear_at(original.blocks[index], path))
                shape, count = self.layout.blocks[index], counts[kind][index]
                groups, at_once = ((shape.heads, 1), (shape.intermediate, CHANNELS))[kind]
                around = range(-EACH_WAY, EACH_WAY + 1)
                sizes = {count + self.steps[kind] * away for away in around}
                sizes = {size for size in sizes if 0 < size <= groups}
                found = levels_of(weight, moments[path], groups, at_once, sizes)
                self.levels[kind].append(found)
                total = sum(found)
                parts = [level.matrix.float() * (size / total) for size, level in found.items()]
                matrix_of(linear_at(block, path)).copy_(torch.stack(parts).sum(0))

            return visit

        visits, progress = (prune(0), prune(1)), problem.job.count("scoring")
        visit_with(windows, self.model, *visits, progress=progress)

    @torch.no_grad()
    def set(self, counts: Counts) -> None:
        """Sets every layer to one of its sizes."""
        for index, block in enumerate(self.model.blocks):
            for kind, branch in enumerate(self.model.branches_of(block)):
                count = counts[kind][index]
                if self.current.get((index, kind)) != count:
                    level = self.levels[kind][index][count]
                    matrix_of(linear_at(block, branch.writes)).copy_(level.matrix)
                    self.current[index, kind] = count

    def kept(self, counts: Counts) -> Float[Tensor, " N"]:
        """Returns 1 for each entry kept at these sizes."""
        heads, channels = (
            [levels[count].kept.float() for levels, count in zip(blocks, numbers, strict=True)]
            for blocks, numbers in zip(self.levels, counts, strict=True)
        )
        shape = self.layout.blocks[0]
        return flat_of(self.layout, channels, [one[:: shape.q // shape.heads] for one in heads])

    def child(self, parent: Counts, noise: torch.Generator) -> Counts:
        """Returns the sizes after a few exchanges between layers of a kind."""
        counts = [list(numbers) for numbers in parent]
        most = torch.randint(1, MOST_EXCHANGES + 1, (2,), generator=noise)
        for _ in range(int(most.min())):
            kind = int(torch.randint(2, (), generator=noise))
            step, numbers, levels = self.steps[kind], counts[kind], self.levels[kind]
            more = [i for i, number in enumerate(numbers) if number + step in levels[i]]
            less = [i for i, number in enumerate(numbers) if number - step in levels[i]]
            pairs = [(i, j) for i in more for j in less if i != j]
            if pairs:
                grown, shrunk = pairs[int(torch.randint(len(pairs), (), generator=noise))]
                numbers[grown] += step
                numbers[shrunk] -= step
        return tuple(counts[0]), tuple(counts[1])


@torch.no_grad()
def levels_of(
    weight: Float[Tensor, "D K"],
    moment: Float[Tensor, "K K"],
    groups: int,
    at_once: int,
    sizes: set[int],
) -> dict[int, Level]:
    """Prunes a layer to several sizes, by the same steps from the dense one.

    Args:
        groups: number of KV heads or channels, each of as many neighbouring inputs.
        at_once: groups pruned before the others are scored anew.
        sizes: numbers of groups to keep.
    """
    each = len(moment) // groups
    held = damped(moment, DAMPING)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(held))
    left = weight.T.double()  # (K, D); pruned rows become 0
    aim = held @ left  # Γ
    alive = torch.ones(groups, dtype=torch.bool, device=weight.device)
    within = torch.arange(each, device=weight.device)
    found: dict[int, Level] = {}
    for size in sorted(sizes, reverse=True):
        while (excess := int(alive.sum()) - size) > 0:
            spread = inverse.diagonal().clamp(min=torch.finfo(inverse.dtype).tiny)
            scores = (aim * left).sum(1).abs() + left.square().sum(1) / (2 * spread)
            of_groups = scores.view(groups, each).sum(1).masked_fill(~alive, torch.inf)
            pruned = of_groups.topk(min(at_once, excess), largest=False).indices
            alive[pruned] = False
            inputs = (pruned[:, None] * each + within).flatten()
            rows = inverse[inputs]
            made_up = torch.linalg.solve(rows[:, inputs], rows)  # (inputs, K)
            left = left - made_up.T @ left[inputs]
            inverse = inverse - made_up.T @ rows
            left[inputs], inverse[inputs], inverse[:, inputs] = 0.0, 0.0, 0.0
        kept = alive.repeat_interleave(each)
        solved = weight.T if kept.all() else torch.linalg.solve(held[kept][:, kept], aim[kept])
        found[size] = Level(kept, solved.T.to(weight.dtype))
    return found


@dataclass(frozen=True)
class Search:
    """An evolutionary search with one parent."""

    problem: PruningProblem
    supernet: Supernet
    windows: Int[Tensor, "W T"]

    def best(self, parent: Counts, noise: torch.Generator, stage: str) -> Counts:
        """Returns the sizes that survive the last generation."""
        progress = self.problem.job.count(stage)
        for generation in range(GENERATIONS):
            children = [self.supernet.child(parent, noise) for _ in range(CHILDREN)]
            left = [child for child in dict.fromkeys(children) if child != parent]
            for number, (tokens, survivors) in enumerate(STAGES, start=1):
                if number == len(STAGES):
                    left.append(parent)
                if len(left) > survivors:
                    lost = self.divergences(left, self._drawn(tokens, noise))
                    left = [left[i] for i in lost.argsort()[:survivors].tolist()]
            parent = left[0]
            progress(generation + 1, GENERATIONS)
        return parent

    def _drawn(self, tokens: int, noise: torch.Generator) -> Int[Tensor, "W T"]:
        """Draws windows that hold about this many tokens: at least one, at most all."""
        count = max(tokens // self.windows.shape[1], 1)
        return self.windows[torch.randperm(len(self.windows), generator=noise)[:count]]

    @torch.no_grad()
    def divergences(
        self, candidates: list[Counts], windows: Int[Tensor, "W T"]
    ) -> Float[Tensor, " _"]:
        """Returns the mean `KL(dense ‖ candidate)` over the dense model's likeliest tokens."""
        dense = self.problem.dense
        windows, most = windows.to(dense.device), min(LIKELIEST, len(dense.head_weight))
        likeliest = [_logits(dense, window).topk(most) for window in windows]
        lost = []
        for counts in candidates:
            self.supernet.set(counts)
            of_windows = [
                nn.functional.kl_div(
                    _logits(self.supernet.model, window).gather(-1, top.indices).log_softmax(-1),
                    top.values.log_softmax(-1),
                    reduction="batchmean",
                    log_target=True,
                )
                for window, top in zip(windows, likeliest, strict=True)
            ]
            lost.append(torch.stack(of_windows).mean())
        return torch.stack(lost)


def _logits(target: PrunableModel, window: Int[Tensor, " T"]) -> Float[Tensor, "T V"]:
    return target.model(input_ids=window[None], use_cache=False).logits[0].float()


BASELINE = Baseline(
    name="tyr",
    title="Týr-the-Pruner",
    reference="Li et al., Týr-the-Pruner: Structural Pruning LLMs via Global Sparsity Distribution "
    "Optimization (arXiv 2503.09657)",
    prepare=tyr,
)
