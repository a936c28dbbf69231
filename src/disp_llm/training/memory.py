"""How much memory learning takes in each process, counted from the shapes of a model.

For its backward pass a block of a frozen model keeps `T·(4F + 6D + 2q + 4kv)` numbers: what enters
and leaves each mask, the activation, queries, keys, values and the attention's output; D less for
each site of the residual stream that is not pruned. Where adapters or weights learn, it keeps what
enters its linear layers too, `T·(F + 2D + q)`. With gradient checkpointing all blocks keep `T·D`,
and one of them the rest.
`benchmarks/learning_memory.py` compares with measured peaks. Low-rank attention and what stands in
the place of attention take up to twice what is counted.

T tokens of a batch, D residual stream, F intermediate, q and kv queries and keys, V vocabulary, L
blocks.
"""

import math
from dataclasses import dataclass

import torch

from disp_llm.compact.modeling_disp_llm import widths_of
from disp_llm.config.prune import PruneConfig
from disp_llm.masks.layout import STREAM_SITES
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.shapes import BlockShape
from disp_llm.training.losses import CHUNK

FLOAT = 4
"""Bytes of a number in float32."""

LOGITS, TAUGHT_LOGITS = 3, 5
"""How many numbers there are at one time for each logit of a chunk, alone and with a teacher's."""

ALLOCATED = 1.2
"""Memory that allocators hold for each byte of what comes and goes, as measured."""

GATHERED = 3
"""Blocks that are whole at one time where processes hold parts: one that runs, the next, and the
buffer that it comes in."""


@dataclass(frozen=True)
class Memory:
    """Bytes in one process."""

    weights: int
    """Frozen weights, as they are held."""
    running: int
    """What else there is of them while a block runs."""
    trained: int
    """Logits, scales, adapters and weights that learn, with gradients and moments."""
    kept: int
    """What autograd keeps for the backward pass."""
    passing: int
    """What comes and goes besides: logits of a chunk, or the backward pass of a block."""

    @property
    def total(self) -> int:
        """The peak."""
        around = self.trained + self.kept + self.passing
        return self.weights + self.running + round(ALLOCATED * around)


def learning_memory(
    target: PrunableModel, config: PruneConfig, processes: int, itemsize: int
) -> Memory:
    """The peak of a learning step.

    Args:
        config: settings, in which gradient checkpointing is "yes" or "no".
        processes: among how many blocks are divided; 1 = each process has all of them.
        itemsize: bytes of a number of the model.
    """
    training, shapes = config.training, target.layout.blocks
    read = training.length * training.batch if config.reads.steps else 0
    learned = read if config.learn.estimator != "policy_gradient" else 0  # that of forward passes
    scores = config.reads.gradients and config.reads_calibration
    scored = config.scores.calibration_length if scores else 0  # with masks at every site
    back = max(learned, scored)
    masks = sum(site in target.sites for site in STREAM_SITES)
    adds = config.reads.learning and config.learn.adds_to_weights
    blocks = [sum(p.numel() for p in block.parameters()) * itemsize for block in target.blocks]
    weights, running = target.parameters * itemsize, 0
    if processes > 1:
        weights -= sum(blocks) - sum(blocks) // processes
        running = GATHERED * max(blocks)
    of_blocks = [
        itemsize * max(learned * _kept(s, masks, adds), scored * _kept(s, len(STREAM_SITES)))
        for s in shapes
    ]
    backward = max(back * itemsize * (3 * s.used + 2 * s.hidden) for s in shapes)
    logits = TAUGHT_LOGITS if training.distill else LOGITS
    chunk = min(CHUNK, max(back, read)) * target.head_weight.shape[0] * FLOAT * logits
    if training.gradient_checkpointing == "yes":
        kept = sum(back * itemsize * s.hidden for s in shapes)
        passing = max(chunk, max(of_blocks) + backward)
    else:
        kept, passing = sum(of_blocks), max(chunk, backward)
    trained = _trained_bytes(target, config) if config.reads.steps else 0
    return Memory(weights, running, trained, kept, passing)


def _kept(shape: BlockShape, masks: int, adds: bool = False) -> int:
    """Numbers of a token that a block keeps for its backward pass, under so many masks in the
    residual stream; where something is added to weights, what enters linear layers too."""
    inputs = 2 * shape.hidden + shape.q + (shape.used if shape.experts == 1 else 0)
    inside = (shape.num_input_projections + 2) * shape.used + 2 * shape.qkv
    return inside + (2 + masks) * shape.hidden + (inputs if adds else 0)


def _trained_bytes(target: PrunableModel, config: PruneConfig) -> int:
    """What is trained, its gradient, two moments, and what the optimiser computes with."""
    learn, entries = config.learn, target.layout.entries
    numbers = entries
    if learn.parametrisation == "hypernetwork":
        from disp_llm.training.hypernetwork import Hypernetwork

        with torch.device("meta"):
            made = Hypernetwork(torch.zeros(entries), (entries,), torch.Generator())
        numbers = sum(one.numel() for one in made.parameters())
    numbers += entries if learn.learns_scales else 0
    if learn.learns_adapters:
        numbers += learn.adapter_rank * sum(sum(widths_of(one)) for one in target.linears())
    if learn.learns_weights:
        numbers += sum(math.prod(widths_of(one)) for one in target.linears())
    return 6 * FLOAT * numbers
