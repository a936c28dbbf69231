"""An exported folder in 8 or 4 bits, in int4 calibrated where there is text.

B windows, T tokens of a window, R outputs, C inputs of a layer.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.config.quantise import QuantiseConfig
from disp_llm.data.named import read_sources
from disp_llm.data.tokens import load_tokens
from disp_llm.export.compressing import Rounded, best_scales, quantise
from disp_llm.export.quantising import GROUP
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.parts.block_by_block import SecondMoments, visit_with
from disp_llm.methods.parts.calibration import windows_of
from disp_llm.methods.parts.compensating import compensated, inverse_factor
from disp_llm.models.loading import load, load_config
from disp_llm.runs.progress import ProgressCallback


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

    def calibrate(names: list[str]) -> dict[str, Rounded]:
        loaded = load(str(config.folder), config.machine)
        bos, target = loaded.bos_token_id, PrunableModel.of(loaded)
        corpus = load_tokens(config.calibration_text, loaded.tokenizer, bos, sources).corpus
        windows = windows_of(corpus, target, count, length, config.machine.seed)
        stated = load_config(str(config.folder)).dtype
        dtype = stated if isinstance(stated, torch.dtype) else loaded.dtype
        return _rounded_layers(target, windows.tokens, set(names), dtype, progress)

    return quantise(config, calibrate, f"{count} windows of {length} tokens of {name}")


def _rounded_layers(
    target: PrunableModel,
    windows: Int[Tensor, "B T"],
    names: set[str],
    dtype: torch.dtype,
    progress: ProgressCallback,
) -> dict[str, Rounded]:
    """The layers of those names, block after block; the blocks that follow read what rounded ones
    give.

    Args:
        dtype: what scales are stored in.
    """
    name_of = {module: name for name, module in target.model.named_modules()}
    found: dict[str, Rounded] = {}

    def visit(index: int, block: nn.Module, moments: SecondMoments) -> None:
        for path, moment in moments.items():
            linear = linear_at(block, path)
            if name_of[linear] in names:
                whole, rounded = rounded_to(linear.weight.float(), moment, dtype)
                linear.weight.copy_(whole)
                found[name_of[linear]] = rounded

    def report(done: int, total: int) -> None:
        progress("rounding blocks", done, total, {})

    visit_with(windows, target, visit, progress=report)
    return found


def rounded_to(
    weight: Float[Tensor, "R C"], moment: Float[Tensor, "C C"], dtype: torch.dtype
) -> tuple[Float[Tensor, "R C"], Rounded]:
    """A weight in int4, and how it is stored: column after column is rounded to the nearest, and
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
    whole = compensated(weight[:, order], factor, exchange)
    return whole[:, back], Rounded(torch.stack(numbers, -1)[:, back], scales)
