"""Quantises the blocks' linear layers to 8 bits, in the format compressed-tensors, which
transformers and vLLM read: a scale per row, and a layer's inputs are rounded to 8 bits at run time.

Every number is rounded to the nearest. No model is loaded: weight files are rewritten one by one.
Norms and the indices of gather and scatter stay unchanged. So do embedding and head unless asked
for; these get 8 bits whatever the blocks have.

R outputs, C inputs of a layer, K of its groups of inputs that share a scale.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.config.errors import InputError, model_is
from disp_llm.config.names import Bits
from disp_llm.exporter.exported import exported_config, has_experts
from disp_llm.exporter.formats import Job, share_card
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.files import INDEX
from disp_llm.models.loading import empty_model, family_of_any, load_config, require_unquantised
from disp_llm.models.rounding import fits, if_unfit, scales_of
from disp_llm.models.wholeness import first_of
from disp_llm.runs.files import read_json, write_json
from disp_llm.runs.sums import CHANGED_FOLDER
from disp_llm.runs.tensors import read_tensors, write_tensors

Rounded = tuple[Float[Tensor, "R C"], Float[Tensor, "R K"]]
"""Float32 weights to be stored on the grid of their scales, and the scales in the model's dtype."""


class Layers(NamedTuple):
    """Names of a model's layers."""

    stored: list[str]
    """Linear layers to quantise: those of the blocks."""
    others: list[str]
    """All other linear layers."""
    embeddings: list[str]
    """Embedding and head."""
    tied: bool
    """Whether embedding and head share a weight, which files hold once."""


Round = Callable[[str, Tensor], Rounded]
"""Returns the named layer's weight and scales, ready to store."""

Scheme = dict[str, Any]
"""A `QuantizationScheme` of compressed-tensors as a dict, since that package is optional."""

# Inputs are rounded too: on CPUs vLLM has no kernel for 8-bit rows with unrounded inputs.
INT8: Scheme = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "strategy": "channel"},
    "input_activations": {"num_bits": 8, "strategy": "token", "dynamic": True},
    "format": "int-quantized",
}


def check(folder: Path) -> None:
    """Refuses mixtures of experts and quantised models."""
    layers_of(folder, "int8")


def write(job: Job) -> None:
    """Rounds every weight to the nearest."""
    told = "8 bits, a scale for each row, and what they read is rounded to 8 bits as they run"
    write_quantised(job, layers_of(job.folder, "int8"), INT8, to_nearest("int8"), told)


def to_nearest(bits: Bits) -> Round:
    """Returns a function that pairs a weight with the scales for rounding to the nearest."""
    return lambda name, weight: (weight.float(), scales_of(weight, bits))


def layers_of(folder: Path, bits: Bits) -> Layers:
    """Returns a model's layers by their treatment: all linear layers of the blocks are quantised.
    Refuses layers that do not fit, mixtures and quantised models."""
    if importlib.util.find_spec("compressed_tensors") is None:
        raise InputError(
            "needs compressed-tensors, which is not installed",
            field="to",
            hint="`pip install compressed-tensors`",
        )
    config = exported_config(folder)
    with model_is("folder"):
        stated = load_config(str(folder))
        require_unquantised(str(folder), stated)
    if has_experts(config):
        raise InputError(
            "is a mixture of experts, whose weights lie in no linear layers",
            field="folder",
            hint="use it as it is",
        )
    target = PrunableModel(empty_model(stated), family_of_any(stated))
    model: Any = target.model
    names = {module: name for name, module in model.named_modules()}
    layers = list(target.linears())
    unfit = [names[one] for one in layers if not fits(one, bits)]
    if unfit:
        raise InputError(
            f"{len(unfit)} layers cannot be stored so ({first_of(unfit)})",
            field="to",
            hint=if_unfit(bits),
        )
    stored = [names[one] for one in layers]
    linears = {name for module, name in names.items() if isinstance(module, nn.Linear)}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied, ends = embedding.weight is head.weight, [names[embedding], names[head]]
    return Layers(stored, sorted(linears - set(stored)), ends, tied)


def write_quantised(job: Job, layers: Layers, how: Scheme, round_to: Round, told: str) -> None:
    """Writes the folder with its quantised layers.

    Args:
        how: scheme of the blocks' layers.
        told: the same in words for the card.
    """
    weights = [name for name, path in job.files.items() if path.suffix == ".safetensors"]
    job.take(INDEX, "config.json", *weights)
    places, total = dict[str, str](), 0
    groups, schemes = {"blocks": how}, dict.fromkeys(layers.stored, (how, round_to))
    if job.embeddings:
        told += "; embedding and head in 8 bits, a scale for each row"
        rows = {key: INT8[key] for key in ("weights", "format")} | {"targets": layers.embeddings}
        groups = {"embeddings": rows} | groups  # first: the head is a linear layer too
        schemes |= dict.fromkeys(layers.embeddings, (rows, to_nearest("int8")))
    first, head = (f"{name}.weight_scale" for name in layers.embeddings)
    for name in weights:
        tensors = _stored(read_tensors(job.files[name], CHANGED_FOLDER).tensors, schemes)
        if layers.tied and first in tensors:
            tensors[head] = tensors[first].clone()
        write_tensors(job.new / name, tensors, {"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if INDEX in job.files:
        index = read_json(job.files[INDEX], CHANGED_FOLDER)
        index |= {"weight_map": places, "metadata": {"total_size": total}}
        write_json(job.new / INDEX, index)
    stated = read_json(job.files["config.json"], CHANGED_FOLDER)
    ignored = sorted({"lm_head", *layers.others} - schemes.keys())
    stated |= {"quantization_config": _described(groups, ignored)}
    write_json(job.new / "config.json", stated)
    size = sum((job.new / name).stat().st_size for name in weights)
    share_card(job, "quantised", size, {"how": told, "layers": len(schemes)})


def _stored(
    tensors: dict[str, Tensor], schemes: dict[str, tuple[Scheme, Round]]
) -> dict[str, Tensor]:
    """Returns the tensors of a file, with each quantised layer's weight replaced by the tensors
    that store it."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    found = dict[str, Tensor]()
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer not in schemes or kind != "weight":
            found[name] = tensor
            continue
        stated, round_to = schemes[layer]
        how = QuantizationScheme(**stated)
        compressor: Any = BaseCompressor.get_value_from_registry(how.format)
        weight, scale = round_to(layer, tensor)
        parts = compressor.compress({"weight": weight, "weight_scale": scale.float()}, how)
        parts |= {"weight_scale": scale}
        found |= {f"{layer}.{part}": number.contiguous() for part, number in parts.items()}
    return found


def _described(groups: dict[str, Scheme], ignored: list[str]) -> dict[str, Any]:
    """Returns the `quantization_config` for `config.json`."""
    from compressed_tensors.quantization import QuantizationConfig

    form, *others = {group["format"] for group in groups.values()}
    described = QuantizationConfig(
        config_groups=groups,
        format="mixed-precision" if others else form,
        quantization_status="compressed",
        ignore=ignored,
    )
    return json.loads(described.model_dump_json())
