"""LLM-Pruner (arXiv 2305.11627): scores structures by the loss's first-order change without them.

A weight scores `|w·∂loss/∂w|`, and a coupled structure (an intermediate channel, a KV head with its
queries) the sum over its weights (section 3.2, element-wise). Every block loses the same share,
except those at both ends, which lose nothing.
"""

from disp_lab.parts.coupled import Sizes, flat_of, sizes_of, top_k
from disp_lab.parts.weight_changes import changes_of, weight_gradients
from disp_llm.config.names import COUPLED
from disp_llm.masks.selection import Selection
from disp_llm.methods import Method, Reads
from disp_llm.training.blocks import checkpointed_blocks
from disp_llm.training.losses import mean_losses
from disp_llm.training.problem import PruningProblem, calibration_windows

ENDS = 0.1
"""Share of the blocks at each end that lose nothing (the authors' scripts: 4 and 2 of 32)."""


def taylor(problem: PruningProblem) -> Selection:
    """Returns ranks of KV heads and intermediate channels within their block, for one size."""
    layout, dense = problem.budget.layout, problem.dense
    sizes = _sizes(problem)
    windows, progress = calibration_windows(problem), problem.job.count("scoring")
    channels, heads = [], []
    with (
        checkpointed_blocks(dense, problem.training.recomputes),
        weight_gradients(dense),
    ):
        for done in range(len(windows)):
            mean_losses(dense, windows[done : done + 1].to(dense.device)).backward()
            progress(done + 1, len(windows))
        for block, shape, kept in zip(dense.blocks, layout.blocks, sizes, strict=True):
            of_heads, of_channels = changes_of(dense, block, shape)
            heads.append(top_k(of_heads, kept.heads))
            channels.append(top_k(of_channels, kept.channels))
    return Selection(flat_of(layout, channels, heads))


def _sizes(problem: PruningProblem) -> list[Sizes]:
    """Returns the sizes of blocks: dense at both ends, between them what the budget leaves."""
    blocks = problem.budget.layout.blocks
    ends = int(ENDS * len(blocks))
    between = len(blocks) - 2 * ends
    share = (min(problem.keeps) * len(blocks) - 2 * ends) / between
    return [
        sizes_of(shape, share)
        if ends <= place < ends + between
        else Sizes(shape.heads, shape.intermediate)
        for place, shape in enumerate(blocks)
    ]


METHOD = Method(
    name="taylor",
    title="LLM-Pruner",
    reference="Ma et al., LLM-Pruner: On the Structural Pruning of Large Language Models "
    "(arXiv 2305.11627)",
    choose=taylor,
    reads=Reads(gradients=True),
    sites=COUPLED,
    one_size=True,
)
