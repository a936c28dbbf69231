"""An exported folder -> the same with the linear layers of its blocks in 8 or 4 bits, in the format
compressed-tensors, which transformers and vLLM read.

Every number is rounded to the nearest that its scale can say, unless a calibration has rounded it;
in int4 the scale is, of ten, the one that loses least of its group. No model is loaded here: the
files of weights are rewritten one after the other. Embedding, head, norms and the indices of gather
and scatter stay as they are.

R outputs, C inputs of a layer, K of its groups of 32 inputs.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.config.errors import InputError, model_is
from disp_llm.config.names import WeightKind
from disp_llm.config.quantise import QuantiseConfig
from disp_llm.export.card import write_quantised_card
from disp_llm.export.facts import FACTS
from disp_llm.export.folders import weight_bytes
from disp_llm.export.plain import EXPORT_AGAIN, has_card, is_mixture, require_exported
from disp_llm.export.quantising import GROUP, fits
from disp_llm.export.sharing import carried, keep_license
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.files import INDEX
from disp_llm.models.loading import empty_model, family_of_any, load_config, require_unquantised
from disp_llm.models.wholeness import first_of
from disp_llm.runs.files import read_json, write_json, write_tensors
from disp_llm.runs.lock import created
from disp_llm.runs.sums import SUMS, write_sums
from disp_llm.runs.tensors import read_tensors

logger = logging.getLogger(__name__)

ROWS = 32
"""Outputs that vLLM's kernels of int4 for CPUs take together, as they do a group of inputs."""

STEPS = torch.linspace(6.5, 11, 10)
"""How many times its scale the largest number of a group of int4 may be, of which -8 can be said:
where it is more, that one is cut off, and the others are said more exactly."""


@dataclass(frozen=True)
class Rounded:
    """The weight of a layer in int4."""

    numbers: Int[Tensor, "R C"]
    """From -8 to 7, in int8."""
    scales: Float[Tensor, "R K"]
    """What those of a group are multiplied by."""

    def whole(self) -> Float[Tensor, "R C"]:
        """The weight that they say, in float32."""
        groups = self.numbers.unflatten(-1, (-1, GROUP))
        return (groups * self.scales.float()[..., None]).flatten(1)


Calibrate = Callable[[list[str]], dict[str, Rounded]]
"""Names of linear layers -> how their weights are rounded."""


@dataclass(frozen=True)
class Layers:
    """The linear layers of a model, by their names."""

    stored: list[str]
    """Those of the blocks that are quantised."""
    left: list[str]
    """Those of the blocks that are not, because of their widths."""
    others: list[str]
    """All that are not, also outside of the blocks."""


def quantise(
    config: QuantiseConfig, calibrate: Calibrate | None = None, calibrated_on: str = ""
) -> dict[str, Any]:
    """Writes the quantised copy of a folder, with a card that says so if the folder has ours.

    Args:
        calibrate: rounds the weights, to int4; None = each is rounded to the nearest.
        calibrated_on: what the card calls the text that they were calibrated on.

    Returns:
        `folder`, `weights`, how many `layers` are quantised, the names of those that are `left` as
        they are, and `bytes` of the weights, now and before.

    Raises:
        InputError: compressed-tensors is not installed; not an exported folder, or one with damaged
            files, links or code of others; it is quantised already, a mixture, or has no layer
            that can be stored so; the place is taken, lies inside the folder, or cannot be written.
    """
    config.validate()
    scheme = _scheme(config.to)
    require_exported(config.folder, card=False)
    layers = _layers(config)
    files, left_out = carried(config.folder)
    before = weight_bytes(config.folder)
    known = dict.fromkeys(layers.stored) | (calibrate(layers.stored) if calibrate else {})
    with created(config.output_dir, "output_dir") as folder:
        _write_files(files, folder, known, scheme)
        size = weight_bytes(folder)
        stated = read_json(files["config.json"], EXPORT_AGAIN)
        stated["quantization_config"] = _described(scheme, layers)
        write_json(folder / "config.json", stated)
        did: dict[str, Any] = {
            "weights": config.to,
            "layers": len(layers.stored),
            "left": len(layers.left),
        }
        if calibrated_on:
            did["calibrated_on"] = calibrated_on
        if has_card(config.folder) and (config.folder / FACTS).is_file():
            write_quantised_card(config.folder, folder, size, did)
            keep_license(config.folder, folder)
        write_sums(folder)
    if layers.left:
        logger.warning(
            "%d of %d layers stay as they are, of widths that are no multiples of %d (see `align`):"
            " %s", len(layers.left), len(layers.stored) + len(layers.left), GROUP,
            first_of(layers.left),
        )  # fmt: skip
    return {
        "folder": str(config.output_dir),
        "weights": config.to,
        "layers": len(layers.stored),
        "left": layers.left,
        "bytes": size,
        "bytes_before": before,
        "left_out": left_out,
    }


Known = dict[str, Rounded | None]
"""The layers that are quantised, by their names; None = nothing has rounded them yet."""


def _write_files(files: dict[str, Path], folder: Path, layers: Known, scheme: Any) -> None:
    """Writes the weights of a folder with the quantised layers, and copies its other files."""
    places, total = dict[str, str](), 0
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            tensors = _stored(read_tensors(path, EXPORT_AGAIN).tensors, layers, scheme)
            write_tensors(folder / name, tensors, {"format": "pt"})
            places |= dict.fromkeys(tensors, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
        elif name != SUMS:
            shutil.copyfile(path, folder / name)
    if INDEX in files:
        index, sizes = read_json(files[INDEX], EXPORT_AGAIN), {"total_size": total}
        write_json(folder / INDEX, index | {"weight_map": places, "metadata": sizes})


def _layers(config: QuantiseConfig) -> Layers:
    """Which layers are quantised. What one branch reads with is quantised together or not at all,
    since engines join it into one layer.

    Raises:
        InputError: none is, or the folder cannot be quantised as a whole.
    """
    with model_is("folder"):
        stated = load_config(str(config.folder))
        require_unquantised(str(config.folder), stated)
    if is_mixture(config.folder):
        raise InputError(
            "is a mixture of experts, whose weights lie in no linear layers",
            field="folder",
            hint="use it as it is",
        )
    target = PrunableModel(empty_model(stated), family_of_any(stated))
    names = {module: name for name, module in target.model.named_modules()}
    stored, left = [], []
    for block, branch in target.present:
        for paths in (branch.reads, (branch.writes,) if branch.writes else ()):
            together = [linear_at(block, path) for path in paths]
            fit = all(fits(linear, config.to, ROWS) for linear in together)
            (stored if fit else left).extend(names[linear] for linear in together)
    if not stored:
        raise InputError(
            f"no layer can be stored so ({first_of(left)})",
            field="to",
            hint="prune or export with an `align` of 32 for int4, or take int8",
        )
    linears = {name for module, name in names.items() if isinstance(module, nn.Linear)}
    return Layers(stored, left, sorted(linears - set(stored)))


def _scheme(kind: WeightKind) -> Any:
    """How layers are stored, and how their inputs are rounded as they run.

    Raises:
        InputError: compressed-tensors is not installed.
    """
    try:
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    except ImportError as error:
        raise InputError(
            "needs compressed-tensors, which is not installed",
            field=kind,
            hint="`pip install compressed-tensors`",
        ) from error
    if kind == "int4":
        weights = QuantizationArgs(num_bits=4, strategy="group", group_size=GROUP)
        return QuantizationScheme(targets=["Linear"], weights=weights, format="pack-quantized")
    # vLLM has no kernel on a CPU that takes rows of 8 bits without rounding what they multiply.
    return QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=8, strategy="channel"),
        input_activations=QuantizationArgs(num_bits=8, strategy="token", dynamic=True),
        format="int-quantized",
    )


def _stored(tensors: dict[str, Tensor], layers: Known, scheme: Any) -> dict[str, Tensor]:
    """The tensors of a file, with those that store each quantised layer in the place of its
    weight."""
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer not in layers or kind != "weight":
            found[name] = tensor
            continue
        if rounded := layers[layer]:
            # What is nearest to these are the same numbers.
            weight, scale = rounded.whole(), rounded.scales.to(tensor.dtype)
        else:
            weight, scale = tensor.float(), _nearest_scales(tensor, scheme.weights)
        whole = {"weight": weight, "weight_scale": scale.float()}
        parts = compressor.compress(whole, scheme) | {"weight_scale": scale}
        found |= {f"{layer}.{part}": number.contiguous() for part, number in parts.items()}
    return found


def _nearest_scales(weight: Tensor, stored: Any) -> Tensor:
    """The scales of a weight each of whose numbers is rounded to the nearest, in its data type."""
    from compressed_tensors.quantization.utils import calculate_qparams

    groups = weight.float().unflatten(-1, (-1, stored.group_size or weight.shape[1]))
    if stored.num_bits == 4:
        return best_scales(groups, weight.dtype)
    most = groups.abs().amax(-1)
    return calculate_qparams(-most, most, stored)[0].to(weight.dtype)


def best_scales(
    groups: Float[Tensor, "R K 32"],
    dtype: torch.dtype,
    sizes: Float[Tensor, "K 32"] | float = 1.0,
) -> Float[Tensor, "R K"]:
    """Scales of int4, of ten those by which the groups lose least if they are rounded.

    They have the other sign than the largest number of the group, which can then be -8 of them: of
    16 steps there are 8 below zero and 7 above it (as in GGUF's Q4_0).

    Args:
        dtype: what they are stored in.
        sizes: by how much the square of what each number loses counts: the mean square of the
            input that it is multiplied by, up to a factor.
    """
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    tried = torch.stack([largest / -steps for steps in STEPS]).to(dtype).float()
    tried = torch.where(tried == 0, 1, tried)  # of nothing but zeros
    missed = ((groups / one).round().clamp(-8, 7) * one - groups for one in tried)
    lost = [(miss.square() * sizes).sum(-1) for miss in missed]
    best = torch.stack(lost).argmin(0, keepdim=True)
    return tried.squeeze(-1).gather(0, best)[0].to(dtype)


def _described(scheme: Any, layers: Layers) -> dict[str, Any]:
    """What `config.json` says of it."""
    from compressed_tensors.quantization import QuantizationConfig

    described = QuantizationConfig(
        config_groups={"blocks": scheme},
        format=scheme.format,
        quantization_status="compressed",
        ignore=sorted({"lm_head", *layers.others}),
    )
    return json.loads(described.model_dump_json())
