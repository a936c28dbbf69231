"""Checkpoints of trained parameters and their optimisers, written whole or not at all.

A file holds whole tensors even if weights are sharded, so any number of processes can resume from
it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from disp_llm.runs.tensors import TensorFile, behind, read_tensors, tensors_sha256, write_tensors

KEPT_CHECKPOINTS = 2

TRAINED = "trained."
"""Prefix of tensor names that do not belong to an optimiser."""

MOMENTS = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})
"""State that AdamW and Muon keep for every parameter."""


def whole_tensors(
    trained: nn.Module, optimizers: Sequence[Optimizer], keeps: bool = True
) -> dict[str, Tensor]:
    """Returns a checkpoint's tensors on the CPU; empty if not `keeps`."""
    parts = {TRAINED + name: value for name, value in _state(trained).items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            parts |= {f"optimizer.{number}.{index}.{name}": value for name, value in state.items()}
    return gathered(parts, keeps)


def gathered(parts: dict[str, Tensor], keeps: bool) -> dict[str, Tensor]:
    """Gathers tensors, some of them sharded, whole on the CPU. All processes that hold shards must
    call it; those without `keeps` get an empty result."""
    whole: dict[str, Tensor] = {}
    for name, part in parts.items():
        tensor = unsharded(part)
        if keeps:
            whole[name] = tensor.detach().cpu().contiguous()
    return whole


def unsharded(tensor: Tensor) -> Tensor:
    """Returns a tensor, whole if it was sharded. All processes that hold shards must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save(folder: Path, facts: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Writes a checkpoint, whose `step` is among the facts, and deletes all but the newest two."""
    path = _path(folder, int(facts["step"]))
    write_tensors(path, tensors, facts | {"sha256": tensors_sha256(tensors)})
    for old in checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        old.unlink()


def restore(folder: Path, trained: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, str]:
    """Loads the newest checkpoint and returns its facts; {} if there is none. Changes nothing
    before the whole file has been checked."""
    found = checkpoints(folder)
    if not found:
        return {}
    file = read_tensors(found[-1], "delete this file to go on from the checkpoint before it")
    step = file.metadata.get("step", "")
    named = step.isdecimal() and found[-1] == _path(folder, int(step))
    file.require(named, "its step is not the one that its name says")
    written = file.metadata.get("sha256") == tensors_sha256(file.tensors)
    file.require(written, "its numbers are not those that were written")
    like = _expected(file, trained, optimizers)
    file.require(file.tensors.keys() == like.keys(), "other tensors than those that are trained")
    tensors = {name: _as_now(file, name, value) for name, value in like.items()}
    trained.load_state_dict(behind(TRAINED, tensors), strict=False)
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in behind(f"optimizer.{number}.", tensors).items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return file.metadata


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.safetensors"


def _state(trained: nn.Module) -> dict[str, Tensor]:
    """Returns the state to save: all but frozen parameters, which their source provides."""
    named = trained.named_parameters(remove_duplicate=False)  # a tied head has two names
    frozen = {name for name, p in named if not p.requires_grad}
    return {name: value for name, value in trained.state_dict().items() if name not in frozen}


def _expected(
    file: TensorFile, trained: nn.Module, optimizers: Sequence[Optimizer]
) -> dict[str, Tensor]:
    """Returns tensors shaped like those of a valid checkpoint: the trained state and, per
    parameter, its whole optimiser state, or none if it never had a gradient."""
    like = {TRAINED + name: value for name, value in _state(trained).items()}
    for number, optimizer in enumerate(optimizers):
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        for index, parameter in enumerate(parameters):
            for moments in MOMENTS:
                names = {f"optimizer.{number}.{index}.{key}" for key in moments}
                if names <= file.tensors.keys():
                    steps = {name: torch.zeros(()) for name in names if name.endswith(".step")}
                    like |= dict.fromkeys(names, parameter) | steps
    return like


def _as_now(file: TensorFile, name: str, now: Tensor) -> Tensor:
    """Returns the saved tensor, checked for the current shape, data type and finiteness; the local
    shard if the current tensor is sharded."""
    divided = isinstance(now, DTensor)
    # Sharded tensors are weights, which are finite; a baseline is NaN before its first use.
    finite = divided or bool(now.isfinite().all())
    whole = file.like(name, tuple(now.shape), now.dtype, finite)
    if not divided:
        return whole
    on_device = whole.to(now.device)
    return distribute_tensor(on_device, now.device_mesh, now.placements, src_data_rank=None)
