"""ShortGPT (arXiv 2403.03853): removes whole blocks, those of least influence first.

Block influence is `1 − E[cos(x_i, x_{i+1})]` between the input and output of block i over
calibration tokens (Eq. 1). The result is a model of the original's class with fewer blocks.

L blocks.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.activations import read_calibration
from disp_lab.parts.baseline import Baseline, BaselineModel, Maker, as_stored, copied
from disp_llm.config.errors import InputError
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.hooks import hooks
from disp_llm.training.problem import PruningProblem

NUMBERS = ("layer_idx", "layer_id")
"""Attribute names of a module's block number; GPT-Neo uses the second."""

LISTED = ("attn_layer_indices",)
"""Configuration keys that list block numbers (Bamba)."""


def depth(problem: PruningProblem) -> Maker:
    """Makes models with the most influential ⌊share · blocks⌋ blocks.

    Raises:
        InputError: a window is longer than the text or than the model can read, a share leaves no
        block or no attention, or blocks cannot be removed.
    """
    family = problem.dense.family
    if any(map(family.is_attention, family.alternatives)):
        raise InputError(
            "blocks have keys and values of others, or inputs by their number, and cannot go",
            field="method",
            hint="give another method `sites` with attention and mlp",
        )
    influence = block_influence(problem)

    def make(share: float) -> BaselineModel:
        count = int(share * len(influence) + 1e-9)
        if not count:
            raise InputError("leaves no block", field="keep", hint="ask for more")
        best = influence.argsort(descending=True)[:count].sort().values.tolist()
        pruned = copied(problem)
        keep_blocks(pruned, best)
        left = (pruned.branches_of(block)[0] for block in pruned.blocks)
        if not any(map(family.is_attention, left)):  # a hybrid's cache needs one
            raise InputError("leaves no block with attention", field="keep", hint="ask for more")
        return as_stored(pruned)

    return make


@torch.no_grad()
def block_influence(problem: PruningProblem) -> Float[Tensor, " L"]:
    """Returns how much each block changes its input, in float64."""
    dense = problem.dense
    influence = torch.zeros(len(dense.blocks), dtype=torch.float64)

    def compare(index: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            alike = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            influence[index] += 1 - alike.mean().cpu()

        return hook

    with hooks(
        block.register_forward_hook(compare(i), with_kwargs=True)
        for i, block in enumerate(dense.blocks)
    ):
        windows = read_calibration(problem)
    return influence / len(windows)


def keep_blocks(prunable: PrunableModel, kept: list[int]) -> None:
    """Removes all other blocks in place, and adapts block numbers and the configuration's lists."""
    blocks, config = prunable.blocks, prunable.model.config.get_text_config()
    left = nn.ModuleList(blocks[index] for index in kept)
    for place, block in enumerate(left):
        for module in block.modules():
            for name in NUMBERS:
                if hasattr(module, name):
                    setattr(module, name, place)
    prunable.language_model.set_submodule(prunable.family.blocks, left)
    for key, value in list(vars(config).items()):
        if key in LISTED:
            setattr(config, key, [kept.index(index) for index in value if index in kept])
        elif isinstance(value, list) and len(value) == len(blocks):
            setattr(config, key, [value[index] for index in kept])  # kinds of attention
    config.num_hidden_layers = len(left)


BASELINE = Baseline(
    name="depth",
    title="ShortGPT",
    reference="Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You "
    "Expect (arXiv 2403.03853)",
    prepare=depth,
)
