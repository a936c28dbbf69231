"""A transformers model in which every block has its own read, inner and write widths.

This file, `experts_disp_llm.py`, `heads_disp_llm.py` and `configuration_disp_llm.py` are in every
exported folder and need only torch and transformers. No code of transformers is copied: the native
classes run with linear layers cut to the configured widths, and two hooks per branch do the rest
(arXiv 2410.11988, Algorithm 1, with the norm before the selection):

    branch input   x  ->  x[..., kept_in]              one gather, shared by q, k, v (gate, up)
    branch output  y  ->  zeros, with y at kept_out    one scatter, as wide as the residual stream

`kept_in` and `kept_out` are int64 buffers of the hooked module. They index dimensions or, which is
faster, chunks of `disp_llm.chunk` neighbours. A branch that keeps all dimensions has no buffer and
no hook there. A dropped branch returns zeros. A mixture of experts gathers and scatters at its
router, its experts and its shared expert, since its own forward assumes equal read and write
widths; a router outside the experts' module reads the whole stream.

D residual stream, K kept of it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from .configuration_disp_llm import PREFIX, native_class, pruned_config
from .heads_disp_llm import cut_heads, heads_of_blocks


def gather(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook: hidden states (..., D) -> (..., K), passed by position or by name."""
    if args:
        return (_selected(module, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": _selected(module, kwargs["hidden_states"])}


def _selected(module: Any, hidden):
    if module.chunk == 1:
        return hidden[..., module.kept_in]
    chunks = hidden.unflatten(-1, (-1, module.chunk))
    return chunks.index_select(-2, module.kept_in).flatten(-2)


def scatter(module: Any, args: tuple, output):
    """Forward hook: the output, or the first of several, (..., K) -> (..., D)."""
    hidden = output[0] if isinstance(output, tuple) else output
    full = hidden.new_zeros((*hidden.shape[:-1], module.full_width))
    if module.chunk == 1:
        full.index_copy_(-1, module.kept_out, hidden)
    else:
        chunks = hidden.unflatten(-1, (-1, module.chunk))
        full.unflatten(-1, (-1, module.chunk)).index_copy_(-2, module.kept_out, chunks)
    return (full, *output[1:]) if isinstance(output, tuple) else full


class LinearWrapper(nn.Module):
    """Replaces a bare linear layer of a block (OPT's MLP) and holds it as `linear`.

    The hooks are on the wrapper. Whatever replaces the inner layer (an adapter, a quantised or an
    engine's layer) sees only the narrow side.
    """

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear

    def forward(self, hidden):
        """Applies the layer; the hooks gather before it and scatter after it."""
        return self.linear(hidden)


class DroppedBranch(nn.Module):
    """Replaces a branch that was pruned as a whole; returns zeros, which the block then adds."""

    def __init__(self, outputs: int):
        super().__init__()
        self.outputs = outputs

    def forward(self, *args, **kwargs):
        """Returns zeros as the hidden states, (..., D), and None for each further output of the
        branch, such as attention weights."""
        zeros = torch.zeros_like(args[0] if args else kwargs["hidden_states"])
        return zeros if self.outputs == 1 else (zeros, *[None] * (self.outputs - 1))


def has_branch(block: nn.Module, scatter: str) -> bool:
    """Returns whether the branch with its output at path `scatter` is still there."""
    return not isinstance(block.get_submodule(scatter), DroppedBranch)


def linear_at(block: nn.Module, path: str) -> Any:
    """Returns the linear layer at `path` in a dense or a pruned block."""
    return inside_of(block.get_submodule(path))


def inside_of(module: nn.Module) -> Any:
    """Returns the module, or the linear layer that it wraps."""
    return module.linear if isinstance(module, LinearWrapper) else module


def is_conv1d(linear: Any) -> bool:
    """Whether the weight is stored as (inputs, outputs): transformers' `Conv1D`, used by GPT-2."""
    return not isinstance(linear, nn.Linear)


def matrix_of(linear: Any) -> torch.Tensor:
    """Returns a writable view of the weight as (outputs, inputs), however it is stored."""
    weight = linear.weight.detach()
    return weight.T if is_conv1d(linear) else weight


def widths_of(linear: Any) -> tuple[int, int]:
    """Returns (inputs, outputs) of a linear layer."""
    rows, columns = linear.weight.shape
    return (rows, columns) if is_conv1d(linear) else (columns, rows)


def cut(linear: Any, inputs: int, outputs: int) -> None:
    """Cuts a linear layer in place to its first inputs and outputs; its class and name stay.

    The values of the weights do not matter: the file's weights are loaded into these shapes.
    """
    full = widths_of(linear)
    if not (0 < inputs <= full[0] and 0 < outputs <= full[1]):
        raise ValueError(f"{full} inputs and outputs cannot be cut to {(inputs, outputs)}")
    rows, columns = (inputs, outputs) if is_conv1d(linear) else (outputs, inputs)
    linear.weight = nn.Parameter(linear.weight.data[:rows, :columns].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.data[:outputs].clone())
    if is_conv1d(linear):
        linear.nx, linear.nf = inputs, outputs
    else:
        linear.in_features, linear.out_features = inputs, outputs


def branches_of(block: nn.Module, disp: dict) -> tuple[dict, dict]:
    """Returns a block's attention (or its replacement) and its MLP, recognised by the modules in
    the block."""
    present = {name for name, _ in block.named_modules()}
    kinds = (disp["attention"], *disp.get("alternatives", ()))
    attention = next(b for b in kinds if present.issuperset((b["gather"], *b["reads"])))
    kinds = (disp[name] for name in ("mixture", "mlp") if name in disp)
    mlp = next(branch for branch in kinds if _main_module(branch) in present)
    return attention, mlp


def _main_module(branch: dict) -> str:
    """Path of a module that only blocks with this branch have; of a mixture, its experts."""
    return branch["experts"]["module"] if branch.get("experts") else branch["scatter"]


def shrink(base: Any, disp: dict) -> None:
    """Cuts every block to the widths in `disp`, drops branches of width 0 and adds the hooks."""
    path = disp["blocks"]
    while "." in path and not hasattr(base, path.partition(".")[0]):  # a part loaded alone
        path = path.partition(".")[2]
    blocks = list(base.get_submodule(path))
    heads = heads_of_blocks(base.config.get_text_config(), disp, len(blocks))
    if any(len(of_blocks) != len(blocks) for of_blocks in (*disp["widths"].values(), heads)):
        raise ValueError(f"disp_llm.widths has not one number for each of {len(blocks)} blocks")
    for i, block in enumerate(blocks):
        width = {site: of_blocks[i] for site, of_blocks in disp["widths"].items()}
        attention, mlp = branches_of(block, disp)
        for name, site, branch in (("attention", "attn", attention), ("mlp", "mlp", mlp)):
            if not width.get(name, 1):
                gives_pair = branch is disp["attention"] or branch.get("gives_pair", False)
                _drop(block, branch, gives_pair)
                continue
            kept = width[f"{site}_in"], width[f"{site}_out"]
            if branch.get("experts"):
                from .experts_disp_llm import cut_experts, matrices_of

                row = branch["experts"]
                read, _ = matrices_of(block.get_submodule(row["module"]), row)
                count, full = width.get("experts", len(read)), read.shape[2]
                cut_experts(block, branch, count, width["mlp_mid"], kept)
            else:
                full = widths_of(block.get_submodule(branch["reads"][0]))[0]
            inside = partial(_left_inside, heads[i], width, branch, name == "mlp")
            _cut_linears(block, branch, kept, inside, bool(disp.get("biases")))
            _add_hooks(block, branch, kept, full, disp.get("chunk", 1))


def _left_inside(heads: int, width: dict, branch: dict, is_mlp: bool, full: int) -> int:
    """Returns the kept part of a branch's inner width. Attention keeps all unless heads are pruned;
    a mixture's shared expert keeps all."""
    if is_mlp:
        return full if branch.get("experts") else width["mlp_mid"]
    return full // heads * width["heads"] if "heads" in width else full


def _cut_linears(
    block: nn.Module,
    branch: dict,
    kept: tuple[int, int],
    inside: Callable[[int], int],
    biases: bool,
) -> None:
    """Cuts the layers that read and write, and the parameters of heads; in a mixture, the layers of
    its shared expert, if any. `inside` maps a full inner width to the kept one; `biases` adds
    missing biases to the layers that write."""
    fused = branch["fused"]
    for path in branch["reads"]:
        linear = block.get_submodule(path)
        cut(linear, kept[0], inside(widths_of(linear)[1] // fused) * fused)
    if branch["writes"]:
        writes: Any = block.get_submodule(branch["writes"])
        if biases and writes.bias is None:
            writes.bias = nn.Parameter(writes.weight.new_zeros(widths_of(writes)[1]))
        cut(writes, inside(widths_of(writes)[0]), kept[1])
    cut_heads(block, branch, inside)


def _drop(block: nn.Module, branch: dict, gives_pair: bool) -> None:
    """Removes a whole branch and its norms from a block."""
    present = {name for name, _ in block.named_modules()}
    for path in present.intersection((*branch["norms"], branch["gather"])):
        block.set_submodule(path, nn.Identity())
    for path in branch.get("beside", ()):
        block.set_submodule(path, DroppedBranch(1))
    experts = branch.get("experts", {})
    if "router_reads_all" in experts.get("quirks", ()):  # it is in no removed module
        block.set_submodule(experts["router"], DroppedBranch(3))
    block.set_submodule(branch["scatter"], DroppedBranch(2 if gives_pair else 1))


def _add_hooks(
    block: nn.Module, branch: dict, kept: tuple[int, int], full: int, chunk: int
) -> None:
    """Adds gather and scatter to a branch where it does not keep the whole stream."""
    kept_in, kept_out = kept
    for path in branch.get("gathers") or (branch["gather"],) if kept_in < full else ():
        module = _selecting(block, path, "kept_in", kept_in, full, chunk)
        module.register_forward_pre_hook(gather, with_kwargs=True)
    for path in branch.get("scatters") or (branch["scatter"],) if kept_out < full else ():
        module = _selecting(block, path, "kept_out", kept_out, full, chunk)
        module.register_forward_hook(scatter)


def _selecting(
    block: nn.Module, path: str, buffer: str, kept: int, full: int, chunk: int
) -> nn.Module:
    """Returns the module to hook for a gather or scatter, with its buffer, `full_width` and `chunk`
    set; wraps a bare linear layer first."""
    if kept % chunk or full % chunk:
        raise ValueError(f"{kept} of {full} dimensions are no chunks of {chunk}")
    module: Any = block.get_submodule(path)
    if type(module) in (nn.Linear, Conv1D):
        module = LinearWrapper(module)
        block.set_submodule(path, module)
    module.register_buffer(buffer, torch.arange(kept // chunk))  # the file holds the true indices
    module.full_width, module.chunk = full, chunk
    return module


def read_quietly(config: Any) -> None:
    """Reads every per-layer attribute once with warnings off, since transformers warns at the first
    read. Native classes read the original's value, and their layers are cut afterwards."""
    if (
        getattr(config, "is_heterogeneous", False)
        and config.allow_global_per_layer_attribute_access
    ):
        level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        try:
            for name in config.per_layer_attributes:
                getattr(config, name)
        finally:
            transformers.logging.set_verbosity(level)


def require_indices(model: nn.Module, missing: set[str]) -> None:
    """Raises ValueError if the file lacks indices, which then hold arbitrary memory, or if they are
    no sorted selection of the stream. On the meta device they are unknown and not checked."""
    for name, kept in model.named_buffers():
        path, _, buffer = name.rpartition(".")
        if buffer in ("kept_in", "kept_out") and not kept.is_meta:
            module: Any = model.get_submodule(path)
            full = module.full_width // module.chunk
            whole = name not in missing and kept.dtype == torch.int64
            if not (whole and (kept.diff() > 0).all() and kept[0] >= 0 and kept[-1] < full):
                raise ValueError(f"{name} is missing, or no sorted selection of {full} places")


def pruned_model(native_name: str) -> type:
    """`LlamaForCausalLM` -> `DispLlamaForCausalLM`, a subclass that cuts itself; made once."""
    name = PREFIX + native_name
    if name not in globals():
        native = native_class(native_name)

        def __init__(self, config, *args, **kwargs):
            read_quietly(config.get_text_config())
            native.__init__(self, config, *args, **kwargs)
            shrink(self.base_model, config.disp_llm)

        def from_pretrained(cls, *args, output_loading_info=False, **kwargs):
            loaded, report = super(made, cls).from_pretrained(
                *args, output_loading_info=True, **kwargs
            )
            require_indices(loaded, report["missing_keys"])
            return (loaded, report) if output_loading_info else loaded

        members = {
            "__module__": __name__,
            "__doc__": f"{native_name} with the widths of its configuration.",
            "__init__": __init__,
            "from_pretrained": classmethod(from_pretrained),
            "config_class": pruned_config(native.config_class.__name__),
            # The file holds all that the model has, but vLLM drops any weight that these patterns
            # match: "model.layers.46", meant for the smaller GLM-4.5, is a block of the larger one.
            "_keys_to_ignore_on_load_unexpected": None,
        }
        made: Any = type(name, (native,), members)
        causal = issubclass(native, transformers.GenerationMixin)
        made.register_for_auto_class("AutoModelForCausalLM" if causal else "AutoModel")
        globals()[name] = made
    return globals()[name]


def __getattr__(name: str) -> type:
    if name.startswith(PREFIX):
        return pruned_model(name.removeprefix(PREFIX))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
