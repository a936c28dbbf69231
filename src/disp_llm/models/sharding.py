"""A model whose blocks are divided among processes (FSDP2).

Each process holds a part of every block weight, with its gradient if trained, and a block's whole
weights only while it runs. Embeddings, head and final norm stay whole everywhere. Work that all do
alike (a learning step) needs nothing more. Work of the first process alone (measuring, exporting)
runs inside `Sharding.lead`: the others supply their parts whenever it runs the model.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, TypeVar

import accelerate
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from disp_llm.config.parts import PlaceConfig
from disp_llm.models.checkpoint import Checkpoint, checkpoint_of
from disp_llm.models.loading import Loaded, auto_class, load
from disp_llm.runs.job import Process

Result = TypeVar("Result")


class Ended(RuntimeError):
    """Raised if another process of this run has failed; that process reports why."""


@dataclass
class Sharding:
    """Divides models among processes; `models`, the divided ones, are the same in all processes."""

    process: Process
    mesh: DeviceMesh
    models: list[PreTrainedModel] = field(default_factory=list)
    leading: bool = False
    """True while the other processes follow the commands of this one."""

    @classmethod
    def among(cls, process: Process) -> "Sharding":
        """Divides among all processes."""
        assert process.group is not None
        return cls(process, DeviceMesh.from_group(process.group, process.device.type))

    def load(
        self,
        name: str,
        machine: PlaceConfig,
        dense_only: bool = False,
        prepare: Callable[[Loaded], Any] | None = None,
    ) -> Loaded:
        """Loads a model of which every process holds only its part.

        Args:
            prepare: marks on the empty model which weights are trained and in which data type;
                their gradients are averaged over all processes. None = none are trained.
        """
        assert prepare is None or not self.leading, "the others do not know what is trained"
        self._tell("load", (name, machine, dense_only))
        loaded = self._filled(name, machine, dense_only, prepare)
        index = len(self.models)
        self.models.append(loaded.model)
        self._run(index)  # FSDP's root must run first, but some heads call the blocks directly
        first = loaded.family.blocks_of(loaded.model)[0]

        def tell(block: nn.Module, args: Any) -> None:
            self._tell("run", index)

        first.register_forward_pre_hook(tell, prepend=True)
        return loaded

    def drop(self, model: PreTrainedModel) -> None:
        """Releases the model that was loaded last."""
        assert self.models[-1] is model
        self._tell("drop", None)
        self.models.pop()

    def lead(self, work: Callable[[], Result]) -> Result | None:
        """Runs `work` in the first process alone. The others take part when it loads, runs or drops
        a model, and return None at its end."""
        if not self.process.is_main:
            self._follow()
            return None
        self.leading = True
        try:
            result = work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # another process may be gone
                self._tell("failed", None)
            raise
        else:
            self._tell("end", None)
            return result
        finally:
            self.leading = False

    def _tell(self, what: str, argument: Any) -> None:
        if self.leading:
            self._broadcast([what, argument])

    def _broadcast(self, message: list[Any]) -> None:
        device = self.process.device if self.process.device.type == "cuda" else None
        torch.distributed.broadcast_object_list(message, device=device)

    @torch.no_grad()
    def _run(self, index: int) -> None:
        """Runs a model on two tokens, only so that this process supplies its weights."""
        tokens = torch.zeros(1, 2, dtype=torch.long, device=self.process.device)
        self.models[index].base_model(input_ids=tokens, use_cache=False)

    def _follow(self) -> None:
        """Follows the commands of the first process until its work ends."""
        told: Any = [None, None]
        while True:
            self._broadcast(told)
            match told:
                case ["run", index]:
                    self._run(index)
                case ["load", arguments]:
                    self.load(*arguments)
                case ["drop", _]:
                    self.drop(self.models[-1])
                case ["end", _]:
                    return
                case _:
                    raise Ended("the first process has ended")

    def _filled(
        self,
        name: str,
        machine: PlaceConfig,
        dense_only: bool,
        prepare: Callable[[Loaded], Any] | None,
    ) -> Loaded:
        """Loads a divided model: the first process reads each tensor and distributes its parts."""
        empty = load(name, machine, dense_only, empty=True)
        model: Any = empty.model
        buffers = computed_buffers(model)
        checkpoint = checkpoint_of(empty)  # in all processes: it tells which weights are tied
        read = self._reader(name, machine, empty, checkpoint) if self.process.is_main else None
        if prepare is not None:
            prepare(empty)
        self._divide(empty)
        model.to_empty(device=self.process.device)
        model.tie_weights()
        own = {key for key, _ in chain(model.named_parameters(), model.named_buffers())}
        for key, tensor in model.state_dict().items():
            if key not in own:  # it is tied to another tensor
                continue
            given = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.process.device)
            if read is not None:
                given.copy_(read(key))
            if isinstance(tensor, DTensor):
                tensor.copy_(distribute_tensor(given, tensor.device_mesh, tensor.placements))
            else:
                torch.distributed.broadcast(given, 0)
                tensor.copy_(given)
        for key, buffer in buffers.items():
            model.get_buffer(key).copy_(buffer)
        model.eval()
        return replace(empty, sharding=self)

    def _reader(
        self, name: str, machine: PlaceConfig, empty: Loaded, checkpoint: Checkpoint | None
    ) -> Callable[[str], Tensor]:
        """Returns a function from name to tensor: it reads the files or, if transformers converts
        them, the whole model in CPU memory."""
        if checkpoint is not None:
            return checkpoint.read
        return load(name, empty.machine(machine, "cpu")).model.state_dict().__getitem__

    def _divide(self, empty: Loaded) -> None:
        """Shards every block as one unit. In training, blocks are gathered in the model's data type
        and gradients reduced in float32."""
        base = empty.family.base_of(empty.model)
        blocks = empty.family.blocks_of(empty.model)
        inside = {parameter for block in blocks for parameter in block.parameters()}
        policy = MixedPrecisionPolicy()
        if any(parameter.requires_grad for parameter in inside):
            policy = MixedPrecisionPolicy(param_dtype=empty.dtype, reduce_dtype=torch.float32)
        for block in blocks:
            fully_shard(block, mesh=self.mesh, mp_policy=policy)
        fully_shard(base, mesh=self.mesh, ignored_params=set(base.parameters()) - inside)


def computed_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns the buffers that a model computes and no file holds, such as rotary frequencies."""
    with accelerate.init_empty_weights(include_buffers=False):
        skeleton = auto_class(model.config).from_config(
            model.config, dtype=model.dtype, trust_remote_code=False
        )
    stored = model.state_dict().keys()
    return {name: buffer for name, buffer in skeleton.named_buffers() if name not in stored}
