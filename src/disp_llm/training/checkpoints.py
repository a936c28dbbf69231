"""Checkpoints of what is trained and of its optimisers, whole or not there.

A file holds whole tensors, also of weights that are divided among processes: any number of
processes can go on from it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from disp_llm.runs.tensors import TensorFile, read_tensors, tensors_sha256, write_tensors

KEPT_CHECKPOINTS = 2

TRAINED = "trained."
"""How the names of tensors begin that are not an optimiser's."""

MOMENTS = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})
"""What AdamW and Muon keep of every parameter."""


def whole_tensors(
    trained: nn.Module, optimizers: Sequence[Optimizer], keeps: bool = True
) -> dict[str, Tensor]:
    """What a checkpoint holds, in the machine's memory, for a process that keeps it."""
    parts = {TRAINED + name: value for name, value in _state(trained).items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            parts |= {f"optimizer.{number}.{index}.{name}": value for name, value in state.items()}
    return gathered(parts, keeps)


def gathered(parts: dict[str, Tensor], keeps: bool) -> dict[str, Tensor]:
    """Tensors, some of them divided, whole and in the machine's memory. Processes that hold parts
    call it alike; those that do not keep them get nothing."""
    whole: dict[str, Tensor] = {}
    for name, part in parts.items():
        tensor = part.full_tensor() if isinstance(part, DTensor) else part
        if keeps:
            whole[name] = tensor.detach().cpu().contiguous()
    return whole


def save(folder: Path, facts: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Writes a checkpoint, with its `step` among the facts, and drops all but the newest two."""
    path = _path(folder, int(facts["step"]))
    write_tensors(path, tensors, facts | {"sha256": tensors_sha256(tensors)})
    for old in checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        old.unlink()


def restore(folder: Path, trained: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, str]:
    """Loads the newest checkpoint, if there is one, and returns its facts. Nothing is changed
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
    trained.load_state_dict(_behind(TRAINED, tensors), strict=False)
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _behind(f"optimizer.{number}.", tensors).items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return file.metadata


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.safetensors"


def _state(trained: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds: all but frozen parameters, which are read where they came from."""
    named = trained.named_parameters(remove_duplicate=False)  # a tied head has two names
    frozen = {name for name, p in named if not p.requires_grad}
    return {name: value for name, value in trained.state_dict().items() if name not in frozen}


def _expected(
    file: TensorFile, trained: nn.Module, optimizers: Sequence[Optimizer]
) -> dict[str, Tensor]:
    """What the tensors of a checkpoint are like: what is trained now and, of every parameter, all
    that its optimiser keeps, or nothing where it never had a gradient."""
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
    """A tensor in the shape and data type that it has now, and as finite; where processes have
    parts of it, this one's."""
    divided = isinstance(now, DTensor)
    # What is divided are weights, which are finite; a baseline is NaN before its first use.
    finite = divided or bool(now.isfinite().all())
    whole = file.like(name, tuple(now.shape), now.dtype, finite)
    if not divided:
        return whole
    on_device = whole.to(now.device)
    return distribute_tensor(on_device, now.device_mesh, now.placements, src_data_rank=None)


def _behind(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those with this prefix, by the rest of their names."""
    named = tensors.items()
    return {name.removeprefix(prefix): one for name, one in named if name.startswith(prefix)}
