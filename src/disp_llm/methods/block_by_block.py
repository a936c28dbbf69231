"""Runs calibration text through a model block by block, while each block is changed.

B windows, T tokens of a window, D residual stream, K inputs of a layer.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import has_branch, linear_at
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.hooks import hooks
from disp_llm.runs.progress import Ticks

SecondMoments = dict[str, Float[Tensor, "K K"]]
"""`Σ x·xᵀ` of each linear layer's input over all calibration tokens, in float32, by the layer's
path in the block. Layers that share an input share the tensor."""

Visit = Callable[[int, nn.Module, SecondMoments], None]
"""Processes a block, given its index and the second moments of its linear layers' inputs."""


@torch.no_grad()
def visit_with(
    windows: Int[Tensor, "B T"],
    prunable: PrunableModel,
    *visits: Visit,
    progress: Ticks,
    changes: bool = True,
) -> None:
    """Visits every block, first to last, with the second moments of its linear layers' inputs. They
    are measured anew for each visit, after the visits before it.

    Args:
        changes: whether visits change a block's output; later blocks then receive the new output.
    """
    blocks = prunable.blocks
    states, arguments = block_inputs(prunable, windows.to(prunable.device))
    outputs = states
    for index, block in enumerate(blocks):
        for visit in visits:
            outputs, moments = _run_measured(prunable, index, states, arguments[index])
            visit(index, block, moments)
        if changes:
            given = zip(states, arguments[index], strict=True)
            outputs = [run_block(block, state, of_window) for state, of_window in given]
        states = outputs
        progress(index + 1, len(blocks))


def run_block(
    block: nn.Module, hidden: Float[Tensor, "1 T D"], arguments: dict[str, Any]
) -> Float[Tensor, "1 T D"]:
    """Returns the hidden states that leave a block or one of its branches."""
    out = block(hidden, **arguments)
    return out[0] if isinstance(out, tuple) else out


def block_inputs(
    prunable: PrunableModel, windows: Int[Tensor, "B T"]
) -> tuple[list[Float[Tensor, "1 T D"]], list[list[dict[str, Any]]]]:
    """Returns the input of the first block, one tensor per window, and each block's other arguments
    per window; arguments that are the same for all windows are held once."""
    states: list[Tensor] = []
    arguments: list[list[dict[str, Any]]] = [[] for _ in prunable.blocks]

    def record(index: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if index == 0:
                states.append(args[0] if args else kwargs["hidden_states"])
            states_name, *names = inspect.signature(module.forward).parameters
            given = dict(zip(names, args[1:], strict=False)) | kwargs  # some have them by place
            given = {k: v for k, v in given.items() if k != states_name}
            before = arguments[index][0] if arguments[index] else {}
            same = {k: before[k] for k, v in given.items() if _same(v, before.get(k))}
            arguments[index].append(given | same)

        return hook

    with hooks(
        block.register_forward_pre_hook(record(index), with_kwargs=True)
        for index, block in enumerate(prunable.blocks)
    ):
        for window in windows:
            prunable.base(input_ids=window[None], use_cache=False)
    return states, arguments


def _same(one: Any, other: Any) -> bool:
    """Returns whether two tensors, or tuples of tensors, are equal."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def _run_measured(
    prunable: PrunableModel, index: int, states: list[Tensor], arguments: list[dict[str, Any]]
) -> tuple[list[Tensor], SecondMoments]:
    """Returns a block's outputs per window, and the moments of its linear layers' inputs."""
    block = prunable.blocks[index]
    moments: SecondMoments = {}

    def add_to(paths: tuple[str, ...]) -> Any:
        def hook(module: nn.Module, args: tuple) -> None:
            inputs = args[0].flatten(0, -2).float()
            total = inputs.T @ inputs
            total = moments[paths[0]] + total if paths[0] in moments else total
            for path in paths:
                moments[path] = total

        return hook

    with hooks(
        linear_at(block, paths[0]).register_forward_pre_hook(add_to(paths))
        for branch in prunable.branches_of(block)
        if has_branch(block, branch.scatter)
        for paths in (branch.reads, *((path,) for path in (*branch.inside, branch.writes)))
    ):
        given = zip(states, arguments, strict=True)
        outputs = [run_block(block, state, of_window) for state, of_window in given]
    return outputs, moments
