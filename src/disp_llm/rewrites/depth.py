"""ShortGPT: Men et al., Layers in Large Language Models are More Redundant Than You Expect
(arXiv 2403.03853).

Block influence is `1 − E[cos(x_i, x_{i+1})]` of what enters and leaves block i over calibration
tokens (Eq. 1); the blocks of least influence go, whole. What is left is a model of the original's
own class with fewer blocks.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from disp_llm.config import InputError
from disp_llm.learn import Task
from disp_llm.masks import blocks_of
from disp_llm.methods.context import Context, calibration_windows
from disp_llm.rewrites.rewrite import Maker, Rewritten, as_stored, copied


def depth(task: Task, context: Context) -> Maker:
    """Models with the most influential ⌊share · blocks⌋ blocks."""
    influence = block_influence(task, context)

    def make(share: float) -> Rewritten:
        left = int(share * len(influence) + 1e-9)
        if not left:
            raise InputError("leaves no block", flag="--keep", mend="ask for more")
        best = influence.argsort(descending=True)[:left].sort().values.tolist()
        model = copied(task)
        keep_blocks(model, task, best)
        return as_stored(model, task.family)

    return make


@torch.no_grad()
def block_influence(task: Task, context: Context) -> Float[Tensor, " L"]:
    """Of each of the L blocks, in float64."""
    windows = calibration_windows(task, context.scores)
    blocks = blocks_of(task.model, task.family)
    influence = torch.zeros(len(blocks), dtype=torch.float64)

    def hook(index: int):
        def compare(module: nn.Module, args: tuple, kwargs: dict, output) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            alike = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            influence[index] += 1 - alike.mean().cpu()

        return compare

    handles = [
        block.register_forward_hook(hook(i), with_kwargs=True) for i, block in enumerate(blocks)
    ]
    try:
        for done, window in enumerate(windows.to(task.model.device), start=1):
            task.model.base_model(input_ids=window[None], use_cache=False)
            context.on_sequence(done, len(windows))
    finally:
        for handle in handles:
            handle.remove()
    return influence / len(windows)


def keep_blocks(model: PreTrainedModel, task: Task, kept: list[int]) -> None:
    """Removes all other blocks in place; caches and lists of the configuration follow."""
    config = model.config.get_text_config()
    blocks = blocks_of(model, task.family)
    left = nn.ModuleList(blocks[index] for index in kept)
    for place, block in enumerate(left):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", place)  # noqa: B010
    model.base_model.set_submodule(task.family.blocks, left)
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == len(blocks):
            setattr(config, key, [value[index] for index in kept])  # kinds of attention
    config.num_hidden_layers = len(left)
