"""An exported folder in 8 or 4 bits, in int4 calibrated where there is text.

A calibration takes hours where a model is large, so blocks that are rounded lie in a folder beside
the one that is written, until that is there; after a kill the same command goes on behind them.

B windows, T tokens of a window, R outputs, C inputs of a layer.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.config.errors import InputError
from disp_llm.config.quantise import QuantiseConfig, begun_dir
from disp_llm.data.sources import read_sources
from disp_llm.data.tokens import load_tokens
from disp_llm.export.compressing import Rounded, best_scales, quantise
from disp_llm.export.quantising import GROUP
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.block_by_block import SecondMoments, visit_with
from disp_llm.methods.calibration import windows_of
from disp_llm.methods.compensating import compensated, inverse_factor
from disp_llm.models.files import fingerprint
from disp_llm.models.loading import Loaded, load, load_config
from disp_llm.runs.files import tensors_sha256, write_tensors
from disp_llm.runs.lock import locked
from disp_llm.runs.progress import ProgressCallback
from disp_llm.runs.tensors import read_tensors


@dataclass(frozen=True)
class RoundedBlocks:
    """Blocks that are rounded, a file each, beside the folder that is to be written."""

    folder: Path
    made_of: str
    """Hash of the model and of the windows that they were rounded by."""

    def read(self, index: int, linears: dict[str, nn.Linear]) -> dict[str, Rounded]:
        """The layers of a block by their names; none of one that has not been rounded.

        Raises:
            InputError: the file is damaged, or of another model or text.
        """
        path = self._file(index)
        if not path.exists():
            return {}
        file = read_tensors(path, f"delete {self.folder}: it is made again")
        if file.metadata.get("made_of") != self.made_of:
            raise InputError(
                "holds blocks of another model, or rounded by other text or settings",
                field=str(self.folder),
                hint="go on with those, delete it, or name another `output_dir`",
            )
        found = {}
        for name, linear in linears.items():
            rows, inputs = linear.weight.shape
            numbers = file.like(f"{name}.numbers", (rows, inputs), torch.int8)
            found[name] = Rounded(numbers, file.like(f"{name}.scales", (rows, inputs // GROUP)))
        return found

    def write(self, index: int, layers: dict[str, Rounded]) -> None:
        """Keeps the layers of a block.

        Raises:
            InputError: the disk is full.
        """
        tensors = {f"{name}.numbers": layer.numbers for name, layer in layers.items()}
        tensors |= {f"{name}.scales": layer.scales for name, layer in layers.items()}
        write_tensors(self._file(index), tensors, {"made_of": self.made_of})

    def _file(self, index: int) -> Path:
        return self.folder / f"block-{index}.safetensors"


def quantise_folder(config: QuantiseConfig, progress: ProgressCallback) -> dict[str, Any]:
    """Writes the quantised copy of a folder.

    Returns:
        What `disp_llm.export.compressing.quantise` does.

    Raises:
        InputError: as there; or the text is unusable, or shorter than a window.
    """
    if not config.is_calibrated:
        return quantise(config)
    config.validate()
    count, length = config.calibration_sequences, config.calibration_length
    sources = read_sources(config.calibration_text, tokens=count * length)
    name = ", ".join(source.text.name for source in sources.learning if source.text)

    begun = begun_dir(config.output_dir)

    def calibrate(names: list[str]) -> dict[str, Rounded]:
        loaded = load(str(config.folder), config.machine)
        bos, target = loaded.bos_token_id, PrunableModel.of(loaded)
        corpus = load_tokens(config.calibration_text, loaded.tokenizer, bos, sources).corpus
        windows = windows_of(corpus, target, count, length, config.machine.seed)
        stated = load_config(str(config.folder)).dtype
        dtype = stated if isinstance(stated, torch.dtype) else loaded.dtype
        blocks = RoundedBlocks(begun, _hash_of(config.folder, windows.tokens, loaded))
        return _rounded_layers(target, windows.tokens, set(names), dtype, blocks, progress)

    with locked(begun, "quantise"):
        did = quantise(config, calibrate, f"{count} windows of {length} tokens of {name}")
        for path in begun.glob("block-*.safetensors"):
            path.unlink()
    return did


def _hash_of(folder: Path, windows: Int[Tensor, "B T"], loaded: Loaded) -> str:
    """What the rounded weights follow from."""
    parts = (fingerprint(folder), tensors_sha256({"windows": windows}), str(loaded.dtype))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _rounded_layers(
    target: PrunableModel,
    windows: Int[Tensor, "B T"],
    names: set[str],
    dtype: torch.dtype,
    blocks: RoundedBlocks,
    progress: ProgressCallback,
) -> dict[str, Rounded]:
    """The layers of those names, block after block; the blocks that follow read what rounded ones
    give.

    Args:
        dtype: what scales are stored in.
        blocks: those that an earlier attempt has rounded, and where more are put.
    """
    name_of = {module: name for name, module in target.model.named_modules()}
    found: dict[str, Rounded] = {}

    def linears_of(block: nn.Module) -> dict[str, nn.Linear]:
        linears = (module for module in block.modules() if isinstance(module, nn.Linear))
        return {name: one for one in linears if (name := name_of[one]) in names}

    def restored(index: int, block: nn.Module) -> bool:
        linears = linears_of(block)
        before = blocks.read(index, linears)
        for name, rounded in before.items():
            linears[name].weight.copy_(rounded.whole())
        found.update(before)
        return bool(before)

    def visit(index: int, block: nn.Module, moments: SecondMoments) -> None:
        rounded = {}
        for path, moment in moments.items():
            linear = linear_at(block, path)
            if (name := name_of[linear]) in names:
                rounded[name] = rounded_to(linear.weight.float(), moment, dtype)
                linear.weight.copy_(rounded[name].whole())
        blocks.write(index, rounded)
        found.update(rounded)

    def report(done: int, total: int) -> None:
        progress("rounding blocks", done, total, {})

    visit_with(windows, target, visit, progress=report, restored=restored)
    return found


def rounded_to(
    weight: Float[Tensor, "R C"], moment: Float[Tensor, "C C"], dtype: torch.dtype
) -> Rounded:
    """A weight in int4: column after column is rounded to the nearest, and
    those that are still to come make up for what it loses (GPTQ, arXiv 2210.17323). Columns of
    large inputs come first (its `act_order`), under scales that are chosen beforehand, so that
    groups are of neighbours all the same; these too are chosen by how large inputs are.

    Args:
        moment: `Σ x·xᵀ` of the inputs.
        dtype: what scales are stored in.
    """
    sizes = moment.diagonal()
    order = sizes.argsort(descending=True, stable=True)
    back = order.argsort()
    groups = weight.unflatten(-1, (-1, GROUP))
    scales = best_scales(groups, dtype, sizes.unflatten(-1, (-1, GROUP))).float()
    scale_of = scales.repeat_interleave(GROUP, 1).T[order]  # (C, R)
    numbers: list[Tensor] = []

    def exchange(column: int, columns: Tensor) -> Tensor:
        number = (columns[column] / scale_of[column]).round().clamp(-8, 7)
        numbers.append(number.to(torch.int8))
        return number * scale_of[column]

    factor = inverse_factor(moment[order][:, order]).to(weight.dtype)
    compensated(weight[:, order], factor, exchange)
    return Rounded(torch.stack(numbers, -1)[:, back].contiguous(), scales)
