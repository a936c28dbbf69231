"""GISP (arXiv 2510.18030): removes structures over many rounds by one threshold for the model.

A KV head with its queries, or an intermediate channel, scores the mean of `|w·∂loss/∂w|` over its
weights. The gradient is that of the mean loss of a round's sequences, so the absolute value is
taken after averaging. Every round scores what is left under the masks so far, and removes an equal
share of the parameters. So sizes nest: entries removed later are more important. The first tenth of
the blocks and the last block lose nothing.

After the released code, where the paper's text could not be read. Here a head's weights are all of
its group (the code's, for grouped queries, are those of q and o). Their number is counted; the code
has 4·d·D for heads and 3·F for channels. Shares are of parameters; the code's are of structures.
There are 22 rounds, not 112, and each reads its own calibration sequences; the code reads the same
2,000 in every round. A model of fewer than ten blocks is pruned throughout.

N entries of all sites.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from disp_lab.parts.coupled import flat_of
from disp_lab.parts.weight_changes import changes_of, weight_gradients
from disp_llm.config.errors import InputError
from disp_llm.config.names import COUPLED
from disp_llm.data.windows import Windows
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import Layout
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Selection
from disp_llm.methods import Method, Reads
from disp_llm.training.blocks import checkpointed_blocks
from disp_llm.training.losses import Teacher, mean_losses
from disp_llm.training.problem import PruningProblem, calibration_windows

ROUNDS = 22
"""Number of rounds, unless there are fewer sequences."""

DISTILLATION = 0.5
"""Share of the loss that is the divergence from the dense model. The code has none; of five trials
that with half lost least (experiments/results/rival-trials.md)."""

SPARED = 0.1
"""Share of the blocks, from the first, that lose nothing."""


def gisp(problem: PruningProblem) -> Selection:
    """Returns the order of removal, down to the problem's smallest size; entries left then are
    ranked by their last score.

    Raises:
        InputError: that size has no room for what is never removed, a window is longer than the
            text or than the model can read, or a score is not finite.
    """
    dense, budget, smallest = problem.dense, problem.budget, min(problem.keeps)
    windows, progress = calibration_windows(problem), problem.job.count("scoring")
    rounds = min(ROUNDS, len(windows))
    spared = spared_entries(budget.layout).to(dense.device)
    if not project(spared.float(), budget, smallest).kept[spared].all():
        raise InputError(
            f"{smallest} is less than what {METHOD.name} leaves whole",
            field=budget.field,
            hint="ask for more",
        )
    kept = torch.ones_like(spared)
    order = torch.zeros(len(kept), dtype=torch.float64, device=dense.device)
    done = 0
    with (
        checkpointed_blocks(dense, problem.training.recomputes),
        masked(dense) as masking,
    ):
        teacher = Teacher(dense, DISTILLATION, masking.lifted) if DISTILLATION else None
        for number, part in enumerate(windows.tensor_split(rounds), start=1):
            masking.set(kept.float())
            scores = mean_changes(dense, part, teacher)
            if not scores.isfinite().all():  # ranks would hide it
                raise InputError(
                    "gave numbers that are not finite",
                    field="method",
                    hint="try the `dtype` float32",
                )
            scores = scores.masked_fill(spared, torch.inf)
            order = torch.where(kept, number + _places(scores) / len(scores), order)
            share = 1 - (1 - smallest) * number / rounds
            kept &= project(scores.masked_fill(~kept, -1.0), budget, share).kept
            done += len(part)
            progress(done, len(windows))
    return Selection(_places(order).float())


def spared_entries(layout: Layout) -> Bool[Tensor, " N"]:
    """Marks entries that are never removed: those of spared blocks, and of sites that the method
    does not know."""
    blocks = len(layout.blocks)
    first = int(SPARED * blocks)
    whole = torch.arange(blocks) < first
    whole[-1] |= first > 0
    elsewhere = torch.tensor([site not in COUPLED for site in layout.sites])
    return (whole[:, None] | elsewhere).flatten()[layout.site_of_entry]


def mean_changes(
    dense: PrunableModel, windows: Windows, teacher: Teacher | None = None
) -> Float[Tensor, " N"]:
    """Returns the mean of `|w·∂loss/∂w|` over the weights of each head and channel, under the
    current masks; 0 for entries that these have removed."""
    layout = dense.layout
    with weight_gradients(dense):
        for place in range(len(windows)):
            loss = mean_losses(dense, windows[place : place + 1].to(dense.device), teacher)
            (loss / len(windows)).backward()
        changes = [
            changes_of(dense, block, shape)
            for block, shape in zip(dense.blocks, layout.blocks, strict=True)
        ]
    heads, channels = ([pair[place] for pair in changes] for place in (0, 1))
    return flat_of(layout, channels, heads) / Budget(layout).entry_costs.to(dense.device)


def _places(numbers: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Returns the rank of each number, from 0 for the lowest; ties by position."""
    return numbers.argsort(stable=True).argsort()


METHOD = Method(
    name="gisp",
    title="GISP",
    reference="Wang et al., From Local to Global: Revisiting Structured Pruning Paradigms for "
    "Large Language Models (arXiv 2510.18030)",
    choose=gisp,
    reads=Reads(gradients=True),
    sites=COUPLED,
)
