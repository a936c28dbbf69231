"""A second device on a machine that has none: it is called `elsewhere`, computes on the processor,
and refuses what a GPU refuses, a tensor of the one device beside a tensor of the other.

`FakeTensorMode` of torch does the same without numbers: on a torch that was not built for GPUs it
crashes in the first linear layer, and on one that was it ends where a program first looks at a
number. Here all numbers are there, and those of both devices can be compared. A model is made
before, since not all of what transformers does while it loads one stays within the mode, and blocks
are not run again in the backward pass, which this kind of device does not bear.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"

aten = torch.ops.aten
ACROSS = {aten.copy_.default, aten._to_copy.default, aten.lift_fresh.default}
"""Operations that take a tensor from one device to the other."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""Operations whose indices may lie on the processor."""


class Elsewhere(Tensor):
    """A tensor of the second device."""

    held: Tensor
    waits: bool = False
    """Whether its numbers were put on the processor, in its place."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
            requires_grad=held.requires_grad,
        )
        made.held = held.detach()
        return made

    def __repr__(self, **settings: Any) -> str:
        return f"Elsewhere({self.held!r})"

    def tolist(self) -> Any:
        """Its numbers."""
        return self.held.tolist()

    def storage(self) -> Any:
        """Where its numbers lie: who asks wants to know whether two tensors share it."""
        return self.held.storage()

    def untyped_storage(self) -> Any:
        """The same."""
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        """The same."""
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        """Itself, apart from any gradient; on the processor, where its numbers wait."""
        return self.held if self.waits else self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        self.waits = not isinstance(value, Elsewhere)
        self.held = getattr(value, "held", value)
        if not self.waits:
            Tensor.data.__set__(self, value)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the device of its tensors or, if it makes some, on the one it names."""
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    there = any(isinstance(one, Elsewhere) for one in tensors)
    named = kwargs.get("device")
    goes = torch.device(named).type == NAME if named is not None else there
    _require_one_device(func, args, tensors)
    inner_args, inner = tree_map_only(Elsewhere, lambda one: one.held, (args, kwargs))
    if named is not None:
        inner = inner | {"device": torch.device("cpu")}
    if func is aten._to_copy.default and inner.get("non_blocking"):
        inner = inner | {"non_blocking": False}
    out = func(*inner_args, **inner)
    if func is aten.copy_.default:
        return args[0]
    if goes:
        out = tree_map_only(Tensor, Elsewhere, out)
    if goes == there and there:
        return return_and_correct_aliasing(func, args, kwargs, out)
    return out


def _require_one_device(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Refuses tensors of two devices, but for single numbers on the processor."""
    if any(isinstance(one, Elsewhere) and one.waits for one in tensors):
        raise RuntimeError(f"{func}: a tensor whose numbers wait on the processor")
    if func in ACROSS:
        return
    if func in INDEXED:
        tensors = [one for one in (args[0], *args[2:]) if isinstance(one, Tensor)]
    there = any(isinstance(one, Elsewhere) for one in tensors)
    here = any(not isinstance(one, Elsewhere) and one.dim() for one in tensors)
    if there and here:
        raise RuntimeError(f"{func}: tensors on two devices")


class _Made(TorchDispatchMode):
    """Operations that are asked for a tensor of the second device give one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def _sent(made: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What makes a tensor of written numbers, which torch does past all modes: here, and sent."""

    def make(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        tensor = made(*args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return make


@contextlib.contextmanager
def second_device() -> Iterator[None]:
    """Makes the device known to torch, in the whole process; while the context lasts, there is
    one."""
    _setup_privateuseone_for_python_backend(NAME)
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.autograd.set_multithreading_enabled(False),  # modes are of one thread
        _Made(),
    ):
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, _sent(getattr(torch, name)))
        yield
