"""Memory that learning takes in each process, computed from the model's shapes.

For the backward pass, a block of a frozen model keeps `T·(4F + 6D + 2q + 4kv)` numbers: the input
and output of each mask, the activation, queries, keys, values and the attention's output. Each
stream site that is not pruned saves D. If adapters or weights learn, the block also keeps the
inputs of its linear layers, `T·(F + 2D + q)`. With gradient checkpointing, every block keeps `T·D`,
and one block at a time the rest. `benchmarks/learning_memory.py` compares with measured peaks.
Low-rank attention and replacements of attention take up to twice the computed memory.

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
"""Bytes per float32 number."""

LOGITS, TAUGHT_LOGITS = 3, 5
"""Numbers held at the same time per logit of a chunk, without and with a teacher."""

ALLOCATED = 1.2
"""Measured bytes that allocators hold per byte of temporary memory."""

GATHERED = 3
"""Blocks held whole at the same time if processes shard them: the running one, the next, and the
buffer that receives it."""


@dataclass(frozen=True)
class Memory:
    """Bytes in one process."""

    weights: int
    """Frozen weights, as stored."""
    running: int
    """Further copies of sharded weights while a block runs."""
    trained: int
    """Logits, scales, adapters and learned weights, with gradients and moments."""
    kept: int
    """What autograd keeps for the backward pass."""
    passing: int
    """Other temporary memory: logits of a chunk, or the backward pass of a block."""

    @property
    def total(self) -> int:
        """Peak memory."""
        around = self.trained + self.kept + self.passing
        return self.weights + self.running + round(ALLOCATED * around)


def learning_memory(
    target: PrunableModel, config: PruneConfig, processes: int, itemsize: int
) -> Memory:
    """Computes the peak memory of a learning step.

    Args:
        config: settings whose gradient checkpointing is "yes" or "no".
        processes: number of processes that shard the blocks; 1 = each holds all blocks.
        itemsize: bytes per number of the model.
    """
    training, shapes = config.training, target.layout.blocks
    read = training.length * training.batch if config.reads.steps else 0
    learned = read if config.learn.estimator != "policy_gradient" else 0  # forward passes only
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
    """Numbers per token that a block keeps for its backward pass, with this many masks in the
    residual stream; the inputs of linear layers too, if something is added to weights."""
    inputs = 2 * shape.hidden + shape.q + (shape.used if shape.experts == 1 else 0)
    inside = (shape.num_input_projections + 2) * shape.used + 2 * shape.qkv
    return inside + (2 + masks) * shape.hidden + (inputs if adds else 0)


def _trained_bytes(target: PrunableModel, config: PruneConfig) -> int:
    """Bytes of what is trained: value, gradient, two moments, two optimiser temporaries."""
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
