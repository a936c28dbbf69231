"""Checkpoints of what is trained and of its optimiser, whole or not there.

A file holds whole tensors, also of weights that are divided among processes: it can be gone on from
with any number of them.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from disp_llm.models.sharding import gathered
from disp_llm.runs.files import tensors_sha256, write_tensors
from disp_llm.runs.tensors import TensorFile, read_tensors
from disp_llm.training.optimizers import Optimizer

KEPT_CHECKPOINTS = 2

TRAINED = "trained."
"""How the names of tensors begin that are not the optimiser's."""

MOMENTS = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})
"""What AdamW and Muon keep of every parameter."""


def whole_tensors(
    trained: nn.Module, optimizer: Optimizer, keeps: bool = True
) -> dict[str, Tensor]:
    """What a checkpoint holds, in the machine's memory. Processes that hold parts call it alike.

    Args:
        keeps: whether this process wants it; the others give their parts, and get nothing.
    """
    parts = {TRAINED + name: value for name, value in _state(trained).items()}
    for index, state in optimizer.state_dict()["state"].items():
        parts |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    return gathered(parts, keeps)


def save(folder: Path, facts: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Writes a checkpoint and drops all but the newest two.

    Args:
        facts: the `step`, and what else has to be the same when it is restored.
        tensors: what it holds.
    """
    path = _path(folder, int(facts["step"]))
    write_tensors(path, tensors, facts | {"sha256": tensors_sha256(tensors)})
    for old in checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        old.unlink()


def _state(trained: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds: all but frozen parameters, which are read where they came from."""
    named = trained.named_parameters(remove_duplicate=False)  # a tied head has two names
    frozen = {name for name, p in named if not p.requires_grad}
    return {name: value for name, value in trained.state_dict().items() if name not in frozen}


def restore(folder: Path, trained: nn.Module, optimizer: Optimizer) -> dict[str, str]:
    """Loads the newest checkpoint, if there is one, and returns its facts.

    Nothing is changed before the whole file has been checked.

    Raises:
        InputError: it is damaged or belongs to another configuration.
    """
    found = checkpoints(folder)
    if not found:
        return {}
    file = read_tensors(found[-1], "delete this file to go on from the checkpoint before it")
    step = file.metadata.get("step", "")
    named = step.isdecimal() and found[-1] == _path(folder, int(step))
    file.require(named, "its step is not the one that its name says")
    written = file.metadata.get("sha256") == tensors_sha256(file.tensors)
    file.require(written, "its numbers are not those that were written")
    own, moments = _trained_of(file, trained), _moments_of(file, optimizer)
    now = _state(trained)
    parts = {name: _divided_like(whole, now[name]) for name, whole in own.items()}
    trained.load_state_dict(parts, strict=False)
    parameters = _optimised(optimizer)
    for index, kept in moments.items():
        for name in kept.keys() - {"step"}:
            kept[name] = _divided_like(kept[name], parameters[index])
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return file.metadata


def _trained_of(file: TensorFile, trained: nn.Module) -> dict[str, Tensor]:
    """What is trained: every tensor as it is now in name, shape and data type, and as finite."""
    now = _state(trained)
    names = {name for name in file.tensors if name.startswith(TRAINED)}
    same = names == {TRAINED + name for name in now}
    file.require(same, "other tensors than those that are trained")
    return {
        name: file.like(TRAINED + name, tuple(value.shape), value.dtype, finite=_is_finite(value))
        for name, value in now.items()
    }


def _is_finite(value: Tensor) -> bool:
    """Whether what is there now is finite; what is divided are weights, which are."""
    return isinstance(value, DTensor) or bool(value.isfinite().all())


def _divided_like(whole: Tensor, like: Tensor) -> Tensor:
    """The tensor or, where what it replaces is divided, this process's part of it."""
    if not isinstance(like, DTensor):
        return whole
    on_device = whole.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def _moments_of(file: TensorFile, optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    """The optimiser's state: moments are of the shape of their parameter; `step` is one number."""
    parameters = _optimised(optimizer)
    found: dict[int, dict[str, Tensor]] = {}
    for name in file.tensors.keys() - {name for name in file.tensors if name.startswith(TRAINED)}:
        prefix, index, key = (*name.split("."), "", "")[:3]
        known = prefix == "optimizer" and index.isdecimal() and int(index) < len(parameters)
        named = any(key in kept for kept in MOMENTS)
        file.require(known and named, f"{name} belongs to nothing")
        parameter = parameters[int(index)]
        like = ((), torch.float32) if key == "step" else (tuple(parameter.shape), parameter.dtype)
        found.setdefault(int(index), {})[key] = file.like(name, *like)
    complete = all(state.keys() in MOMENTS for state in found.values())
    file.require(complete, "the optimiser's state is not complete")
    return found


def _optimised(optimizer: Optimizer) -> list[Tensor]:
    """Parameters in the order in which the optimiser's state counts them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.safetensors"
