"""Checkpoints of what is trained and of its optimiser, whole or not there."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from disp_llm.config.errors import InputError
from disp_llm.runs.files import write_tensors

KEPT_CHECKPOINTS = 2


def save(folder: Path, step: int, trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes a checkpoint and drops all but the newest two."""
    tensors = {f"trained.{name}": value for name, value in _state(trained).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_tensors(_path(folder, step), tensors, {"step": str(step)})
    for old in checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        old.unlink()


def _state(trained: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds: all but frozen parameters, which are read where they came from."""
    named = trained.named_parameters(remove_duplicate=False)  # a tied head has two names
    frozen = {name for name, p in named if not p.requires_grad}
    return {name: value for name, value in trained.state_dict().items() if name not in frozen}


def restore(folder: Path, trained: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the newest checkpoint, if there is one, and returns the step to go on with.

    Raises:
        InputError: it is damaged or belongs to another configuration.
    """
    found = checkpoints(folder)
    if not found:
        return 0
    path = found[-1]
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step = int(file.metadata()["step"])
        own = {
            k.removeprefix("trained."): v for k, v in tensors.items() if k.startswith("trained.")
        }
        if own.keys() != _state(trained).keys():
            raise KeyError("other tensors than those that are trained")
        trained.load_state_dict(own, strict=False)
        template = optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(template | {"state": state})
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(
            f"damaged or of another configuration ({str(error).splitlines()[0]})",
            field=str(path),
            hint="delete this file to go on from the checkpoint before it",
        ) from error
    return step


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.safetensors"
