"""How much memory learning takes in each process, counted from the shapes of a model.

For its backward pass a block of a frozen model keeps `T·(4F + 6D + 2q + 4kv)` numbers: what enters
and leaves each mask, the activation, queries, keys, values and the attention's output. With
gradient checkpointing all blocks keep `T·D`, and one of them the rest. The formulas are held
against measured peaks by `benchmarks/learning_memory.py`. Of attention whose queries, keys and
values come from low-rank projections, and of what stands in the place of attention, the half or
less is counted.

T tokens of a batch, D residual stream, F intermediate, q and kv queries and keys, V vocabulary, L
blocks.
"""

import math
from dataclasses import dataclass

from disp_llm.compact.modeling_disp_llm import widths_of
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.masks.layout import BlockShape
from disp_llm.masks.prunable import PrunableModel
from disp_llm.training.hypernetwork import numbers_of
from disp_llm.training.losses import CHUNK

FLOAT = 4
"""Bytes of a number in float32."""

LOGITS, TAUGHT_LOGITS = 4, 7
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
        target: the model, which may be empty.
        config: settings, in which gradient checkpointing is "yes" or "no".
        processes: among how many blocks are divided; 1 = each process has all of them.
        itemsize: bytes of a number of the model.
    """
    training = config.training
    tokens = training.length * training.batch
    blocks = [sum(p.numel() for p in block.parameters()) for block in target.blocks]
    largest = max(blocks) * itemsize
    outside = (target.parameters - sum(blocks)) * itemsize
    held, running = sum(blocks) * itemsize, 0
    if processes > 1:
        held, running = held // processes, GATHERED * largest
    of_blocks = [kept_by_block(shape, tokens) * itemsize for shape in target.layout.blocks]
    inputs = sum(tokens * shape.hidden * itemsize for shape in target.layout.blocks)
    logits = TAUGHT_LOGITS if training.distill else LOGITS
    chunk = min(CHUNK, tokens) * target.head_weight.shape[0] * FLOAT * logits
    backward = max(passing_in_block(shape, tokens) * itemsize for shape in target.layout.blocks)
    if training.gradient_checkpointing == "yes":
        kept, passing = inputs, max(chunk, max(of_blocks) + backward)
    else:
        kept, passing = sum(of_blocks), max(chunk, backward)
    if config.learn.estimator == "policy_gradient":  # forward passes alone
        kept = 0
    return Memory(outside + held, running, trained_bytes(target, config), kept, passing)


def recovery_memory(
    models: list[PrunableModel], config: RecoverConfig, processes: int, itemsize: int
) -> int:
    """Bytes of weights, gradients and moments in each process while weights are trained; what a
    step needs besides comes on top.

    Args:
        models: the student and, if there is one, the teacher; empty ones will do.
        processes: among how many blocks are divided.
        itemsize: bytes of a number of the model.
    """
    total = 0
    for index, target in enumerate(models):
        blocks = sum(p.numel() for block in target.blocks for p in block.parameters())
        each = TRAINED * FLOAT if index == 0 else itemsize
        total += (target.parameters - blocks) * itemsize + blocks * each // processes
    return total


TRAINED = 4
"""Numbers in float32 for each weight that is trained: itself, its gradient, two moments."""


def kept_by_block(shape: BlockShape, tokens: int) -> int:
    """Numbers that autograd keeps of a block."""
    inner = (shape.num_input_projections + 2) * shape.used
    return tokens * (inner + 6 * shape.hidden + 2 * shape.qkv)


def passing_in_block(shape: BlockShape, tokens: int) -> int:
    """Numbers of gradients that there are at one time in the backward pass of a block."""
    return tokens * (3 * shape.used + 2 * shape.hidden)


def trained_bytes(target: PrunableModel, config: PruneConfig) -> int:
    """What is trained, its gradient, two moments, and what the optimiser computes with."""
    learn, entries = config.learn, target.layout.entries
    numbers = numbers_of(learn.parametrisation, entries) + (entries if learn.learns_scales else 0)
    if learn.learns_adapters:
        numbers += learn.adapter_rank * _widths(target)
    if learn.learns_weights:
        numbers += sum(math.prod(widths_of(one)) for one in target.linears())
    return 6 * FLOAT * numbers


def _widths(target: PrunableModel) -> int:
    """Numbers of a rank of adapters on all linear layers of the blocks."""
    return sum(sum(widths_of(one)) for one in target.linears())
