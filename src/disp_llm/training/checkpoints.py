"""Checkpoints of what is trained and of its optimisers, whole or not there.

A file holds whole tensors, also of weights that are divided among processes: any number of
processes can go on from it.
"""

from collections.abc import Sequence
from pathlib import Path

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
    own, states = _trained_of(file, trained), _states_of(file, optimizers)
    trained.load_state_dict(own, strict=False)
    for optimizer, state in zip(optimizers, states, strict=True):
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


def _trained_of(file: TensorFile, trained: nn.Module) -> dict[str, Tensor]:
    """What is trained: every tensor as it is now in name, shape and data type, and as finite."""
    now = _state(trained)
    names = {name for name in file.tensors if name.startswith(TRAINED)}
    same = names == {TRAINED + name for name in now}
    file.require(same, "other tensors than those that are trained")
    found = {}
    for name, value in now.items():
        # What is divided are weights, which are finite; a baseline is NaN before its first use.
        finite = isinstance(value, DTensor) or bool(value.isfinite().all())
        whole = file.like(TRAINED + name, tuple(value.shape), value.dtype, finite=finite)
        found[name] = _divided_like(whole, value)
    return found


def _divided_like(whole: Tensor, like: Tensor) -> Tensor:
    """The tensor or, where what it replaces is divided, this process's part of it."""
    if not isinstance(like, DTensor):
        return whole
    on_device = whole.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def _states_of(
    file: TensorFile, optimizers: Sequence[Optimizer]
) -> list[dict[int, dict[str, Tensor]]]:
    """The state of every optimiser; a parameter that never had a gradient has none."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    known = {name for name in file.tensors if name.startswith(TRAINED)}
    parameters = [
        (number, index, parameter)
        for number, optimizer in enumerate(optimizers)
        for index, parameter in enumerate(
            one for g in optimizer.param_groups for one in g["params"]
        )
    ]
    for number, index, parameter in parameters:
        prefix = f"optimizer.{number}.{index}."
        keys = {name.removeprefix(prefix) for name in file.tensors if name.startswith(prefix)}
        file.require(not keys or keys in MOMENTS, "the optimiser's state is not complete")
        for key in keys:
            shape = () if key == "step" else tuple(parameter.shape)
            moment = file.like(prefix + key, shape, parameter.dtype)
            if key != "step":
                moment = _divided_like(moment, parameter)
            states[number].setdefault(index, {})[key] = moment
        known |= {prefix + key for key in keys}
    file.require(file.tensors.keys() <= known, "it has tensors that belong to nothing")
    return states
