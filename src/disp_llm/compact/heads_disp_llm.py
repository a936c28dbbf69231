"""The heads of attention, cut: fewer of them, with what else each of them has.

This file lies in every exported folder, beside `modeling_disp_llm.py`, and stands alone on torch.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

OF_LINEAR_ATTENTION = ("num_k_heads", "num_v_heads", "key_dim", "value_dim", "conv_dim")
"""What native classes of linear attention call numbers that shrink with their heads."""


def heads_of_blocks(config: Any, disp: dict, blocks: int) -> list[int]:
    """How many heads each block of the original has: KV heads, or as the folder says, where some
    blocks have something else in the place of attention; 0 where no heads are pruned."""
    if "heads" not in disp["widths"]:  # a configuration may have no one number for all blocks
        return [0] * blocks
    of_attention = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return disp.get("heads") or [of_attention] * blocks


def cut_heads(block: nn.Module, branch: dict, inside: Callable[[int], int]) -> None:
    """Cuts what each head has beside rows and columns of linear layers, and tells a linear
    attention how many heads it has; `inside` says what is left of a width inside of the branch."""
    for path in branch.get("per_head", ()):
        module, _, name = path.rpartition(".")
        owner: Any = block.get_submodule(module)
        numbers = getattr(owner, name).data
        left = inside(len(numbers))
        setattr(owner, name, nn.Parameter(numbers[:left].clone()))
        if isinstance(owner, nn.Conv1d):  # one channel a group
            owner.in_channels = owner.out_channels = owner.groups = left
    if branch.get("heads"):
        own = vars(block.get_submodule(branch["gather"]))
        own.update({name: inside(own[name]) for name in OF_LINEAR_ATTENTION if name in own})
