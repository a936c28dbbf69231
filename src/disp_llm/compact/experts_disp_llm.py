"""Cuts the experts of a mixture: fewer of them, with fewer dimensions.

This file is in every exported folder, beside `modeling_disp_llm.py`, and needs only torch and
transformers. The native classes run with cut packed weights and routers. Only the sum over experts
is computed here, since transformers' own functions do not support all cut widths.

D residual stream, K (read) and K' (written) kept of it, N tokens, E experts, C chosen by each
token, F intermediate. A `row` is the configuration's entry about the experts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn


def matrices_of(experts: Any, row: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed weights of all experts, (E, 2F, D) and (E, D, F), however they are stored."""
    read, write = experts.gate_up_proj, experts.down_proj
    return (read.mT, write.mT) if "transposed" in row.get("quirks", ()) else (read, write)


def biases_of(experts: Any, row: dict) -> tuple[Any, Any]:
    """Returns the biases of all experts, (E, 2F) and (E, D); lists of None if they have none."""
    if "biased" in row.get("quirks", ()):
        return experts.gate_up_proj_bias, experts.down_proj_bias
    none = [None] * len(experts.gate_up_proj)
    return none, none


def run_experts(
    experts: Any,
    row: dict,
    hidden: torch.Tensor,
    chosen: torch.Tensor,
    factors: torch.Tensor,
    on_middle: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sums the outputs of each token's experts. Replaces transformers' own functions, which assume
    that as many dimensions are written (K') as are read (K), and that widths are aligned.

    Args:
        hidden: (N, K).
        chosen: indices of each token's experts, (N, C); -1 = none.
        factors: weights of their outputs, (N, C).
        on_middle: changes intermediate dimensions, given them, the expert and the tokens.

    Returns:
        (N, K').
    """
    (read, write), (of_read, of_write) = matrices_of(experts, row), biases_of(experts, row)
    added = hidden.new_zeros(len(hidden), write.shape[1])
    for expert in chosen[chosen >= 0].unique().tolist():
        token, place = torch.where(chosen == expert)
        middle = nn.functional.linear(hidden[token], read[expert], of_read[expert])
        middle = experts._apply_gate(middle)
        if on_middle is not None:
            middle = on_middle(middle, expert, token)
        made = nn.functional.linear(middle, write[expert], of_write[expert])
        made = made * factors[token, place, None]
        added = added.index_add(0, token, made.to(added.dtype))
    return added


def run_scored_experts(
    experts: Any,
    row: dict,
    hidden: torch.Tensor,
    on_middle: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Returns the outputs of experts that all read all tokens, pre-multiplied by scores (Llama 4).

    Args:
        hidden: (E·N, K), expert by expert.
        on_middle: changes intermediate dimensions, (E, N, F).

    Returns:
        (E·N, K').
    """
    read, write = matrices_of(experts, row)
    gate, up = torch.bmm(hidden.view(len(read), -1, read.shape[2]), read.mT).chunk(2, dim=-1)
    middle = up * experts.act_fn(gate)
    if on_middle is not None:
        middle = on_middle(middle)
    return torch.bmm(middle, write.mT).flatten(0, 1)


ALIGNED = 8
"""Widths must be multiples of this (16 bytes) for torch's grouped matrix product."""

EXPERTS = ("num_experts", "out_features")
READS = ("hidden_dim", "hidden_size", "in_features")
INSIDE = ("intermediate_dim", "intermediate_size", "expert_dim")
"""Attributes in which native classes store the number of experts, of dimensions read, and of
intermediate dimensions."""


def resize(module: nn.Module, experts: int, reads: int, inside: int) -> None:
    """Updates a module's own attributes for its numbers of experts and dimensions."""
    called = {EXPERTS: experts, READS: reads, INSIDE: inside}
    sizes = {name: size for names, size in called.items() for name in names}
    own = vars(module)
    own.update({name: size for name, size in sizes.items() if name in own})


def keep_experts(
    module: nn.Module, row: dict, kept: torch.Tensor, reads: int, place: str = ""
) -> None:
    """Cuts a router to its `kept` experts and to the first `reads` of its input dimensions.
    `module` is the block, or its part at path `place`; nothing outside `module` changes."""
    rows: Any = module.get_submodule(_relative(row["rows"], place))
    rows.weight = nn.Parameter(rows.weight.data[kept, :reads])
    for path in row["counted"]:
        if place and not path.startswith(f"{place}."):
            continue
        of, _, name = _relative(path, place).rpartition(".")
        owner = module.get_submodule(of)
        tensor = getattr(owner, name)
        left = tensor.data[..., kept]
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(owner, name, nn.Parameter(left, requires_grad=False) if is_parameter else left)
    for one in (rows, module.get_submodule(_relative(row["router"], place))):
        resize(one, len(kept), reads, 0)


def _relative(path: str, place: str) -> str:
    """Returns a path of the block relative to its part at `place`."""
    return path.removeprefix(place).removeprefix(".")


def require_own_experts(path: str, block: nn.Module, args: tuple) -> None:
    """Forward pre-hook of a block: raises RuntimeError if vLLM has replaced cut experts by its own.
    Those have the original's widths, so their missing weights are uninitialised memory, and nothing
    else reports it."""
    if type(block.get_submodule(path)).__module__.startswith("vllm."):
        raise RuntimeError(
            "vLLM runs pruned experts only with the package disp-llm installed beside it"
        )


def cut_experts(
    block: nn.Module, branch: dict, count: int, middle: int, kept: tuple[int, int]
) -> None:
    """Cuts a mixture in place to its first `count` experts, `middle` intermediate dimensions and
    `kept` (read, written) dimensions. Raises ValueError if it has fewer."""
    row = branch["experts"]
    experts: Any = block.get_submodule(row["module"])
    read, write = matrices_of(experts, row)
    full = (len(read), read.shape[2], write.shape[2], write.shape[1])
    wanted = (count, kept[0], middle, kept[1])
    if not all(0 < some <= all_ for some, all_ in zip(wanted, full, strict=True)):
        raise ValueError(f"{full} experts and dimensions cannot be cut to {wanted}")
    if wanted == full:
        return
    block.register_forward_pre_hook(partial(require_own_experts, row["module"]))
    left = read.data[:count, : 2 * middle, : kept[0]], write.data[:count, : kept[1], :middle]
    of_read, of_write = biases_of(experts, row)
    for name, part in zip(("gate_up_proj", "down_proj"), left, strict=True):
        part = part.mT if "transposed" in row.get("quirks", ()) else part
        setattr(experts, name, nn.Parameter(part.clone(memory_format=torch.contiguous_format)))
    if "biased" in row.get("quirks", ()):
        experts.gate_up_proj_bias = nn.Parameter(of_read.data[:count, : 2 * middle].clone())
        experts.down_proj_bias = nn.Parameter(of_write.data[:count, : kept[1]].clone())
    resize(experts, count, kept[0], middle)
    if "scores_inputs" in row.get("quirks", ()):
        if kept[0] != kept[1]:
            experts.forward = partial(run_scored_experts, experts, row)
    elif kept[0] != kept[1] or any(width % ALIGNED for width in (*kept, middle)):
        experts.forward = partial(run_experts, experts, row)
    routed = full[1] if "router_reads_all" in row.get("quirks", ()) else kept[0]
    keep_experts(block, row, torch.arange(count, device=read.device), routed)
