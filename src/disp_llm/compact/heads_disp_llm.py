"""Cuts the heads of attention: fewer of them, with all their own parameters.

This file is in every exported folder, beside `modeling_disp_llm.py`, and needs only torch.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

OF_LINEAR_ATTENTION = ("num_k_heads", "num_v_heads", "key_dim", "value_dim", "conv_dim")
"""Attributes of native linear attention that shrink with its heads."""


def heads_of_blocks(config: Any, disp: dict, blocks: int) -> list[int]:
    """Returns the number of heads in each block of the original: KV heads, or the folder's own
    numbers if some blocks replace attention; 0 if no heads are pruned."""
    if "heads" not in disp["widths"]:  # a configuration may lack one number for all blocks
        return [0] * blocks
    of_attention = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return disp.get("heads") or [of_attention] * blocks


def cut_heads(block: nn.Module, branch: dict, inside: Callable[[int], int]) -> None:
    """Cuts the parameters that heads have outside linear layers, and updates the head counts of
    linear attention. `inside` maps a full inner width to the kept one."""
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
