"""A frozen model whose blocks have their weights only while they run: until then these wait in
fewer bits, in the machine's memory, or in the model's files.

Between two passes a block's matrices are on the meta device, so that their shapes are known and
nobody takes them for the weights. Autograd would keep what was fetched until the backward pass,
unless blocks are run again in it (gradient checkpointing).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.frozen import FrozenConfig
from disp_llm.config.parts import MachineConfig
from disp_llm.models.checkpoint import checkpoint_of
from disp_llm.models.devices import resolve_device
from disp_llm.models.loading import Loaded, load
from disp_llm.models.rounding import ROUNDINGS, Rounded
from disp_llm.models.skeleton import computed_buffers, put
from disp_llm.runs.job import Process

Result = TypeVar("Result")


@dataclass
class Kept:
    """A matrix of a block, and how it comes there."""

    module: nn.Module
    name: str
    """Of the parameter in its module."""
    empty: nn.Parameter
    """What stands in its place."""
    read: Callable[[], Tensor]
    """Gives it as the files have it."""
    held: Tensor | Rounded | None
    """As it waits in memory; None = in the files alone."""

    def fetch(self, device: torch.device, exact: bool) -> None:
        """Puts the weight into its layer.

        Args:
            exact: whether it is the original's, whatever its precision in memory.
        """
        held = self.held
        if held is None or (exact and not self._is_exact):
            weight = self.read()
        else:
            held = held.to(device)
            weight = held.weight() if isinstance(held, Rounded) else held
        layer: Any = self.module
        layer._parameters[self.name] = weight.to(device, self.empty.dtype)

    def leave(self) -> None:
        """Takes it out again."""
        self.module._parameters[self.name] = self.empty

    @property
    def _is_exact(self) -> bool:
        return isinstance(self.held, Tensor) and self.held.dtype == self.empty.dtype


@dataclass
class Fetching:
    """How models are held, in each process by itself."""

    process: Process
    frozen: FrozenConfig
    is_exact: bool = False
    """Whether blocks run with the original's weights."""

    def load(self, name: str, machine: MachineConfig, dense_only: bool = False) -> Loaded:
        """Loads a model tensor by tensor.

        Raises:
            InputError: no such model, an unknown architecture, damaged files, or files that do not
                hold tensors one by one.
        """
        empty = load(name, machine, dense_only, empty=True)
        checkpoint = checkpoint_of(empty)
        if checkpoint is None:
            raise InputError(
                f"{name} is not stored tensor by tensor",
                field="base_precision" if self.frozen.offload == "no" else "offload",
                hint="name a folder of safetensors files, or leave it out",
            )
        model: Any = empty.model
        device = resolve_device(machine.device)
        blocks = list(empty.family.blocks_of(model))
        waiting = {id(p) for block in blocks for p in block.parameters() if p.dim() > 1}
        names = {name: id(p) for name, p in model.named_parameters()}
        for key, buffer in computed_buffers(model).items():
            put(model, key, buffer.to(device))
        for key in model.state_dict():
            if key in checkpoint.sources and names.get(key) not in waiting:
                put(model, key, checkpoint.read(key).to(device))
        model.tie_weights()
        paths = {id(module): path for path, module in model.named_modules()}
        for block in blocks:
            kept: list[Kept] = []
            for module in block.modules():
                for key, parameter in module.named_parameters(recurse=False):
                    if parameter.is_meta:
                        read = partial(checkpoint.read, f"{paths[id(module)]}.{key}")
                        kept.append(Kept(module, key, parameter, read, self._held(read, device)))
            block.forward = self._fetched(block.forward, kept, device)
        model.eval().requires_grad_(False)
        return replace(empty, holding=self)

    def drop(self, model: PreTrainedModel) -> None:
        """Lets go of a model: nobody else holds anything of it."""

    def lead(self, work: Callable[[], Result]) -> Result | None:
        """Lets the first process work, with the original's weights, while the others wait; None in
        these."""
        result = None
        if self.process.is_main:
            self.is_exact = True
            try:
                result = work()
            finally:
                self.is_exact = False
        self.process.wait()
        return result

    def _held(self, read: Callable[[], Tensor], device: torch.device) -> Tensor | Rounded | None:
        """How a matrix waits."""
        if self.frozen.offload == "disk":
            return None
        weight, precision = read(), self.frozen.base_precision
        if precision in ROUNDINGS:
            weight = ROUNDINGS[precision](weight)
        elif precision == "bfloat16":
            weight = weight.to(torch.bfloat16)
        return weight.to(device if self.frozen.offload == "no" else torch.device("cpu"))

    def _fetched(self, forward: Callable, kept: list[Kept], device: torch.device) -> Callable:
        """The forward pass of a block that has its weights while it runs."""

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                for one in kept:
                    one.fetch(device, self.is_exact)
                return forward(*args, **kwargs)
            finally:
                for one in kept:
                    one.leave()

        return run
