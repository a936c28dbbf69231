"""Quantises the blocks' linear layers to 4 bits, a scale per 32 inputs, in the format of `int8`.

Without text, each number is rounded to the nearest, and each group takes that of ten scales which
loses least. With text, the columns not yet rounded make up for the errors of those before them
(GPTQ, arXiv 2210.17323), block after block, as the text runs through the rounded model.

R outputs, C inputs of a layer.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.config.parts import PlaceConfig
from disp_llm.data.randomness import random_stream
from disp_llm.data.sources import read_sources
from disp_llm.data.tokens import load_tokens
from disp_llm.exporter.formats import Job
from disp_llm.exporter.formats.int8 import Rounded, Scheme, layers_of, to_nearest, write_quantised
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.block_by_block import SecondMoments, visit_with
from disp_llm.methods.compensating import compensated, inverse_factor
from disp_llm.models.loading import load, load_config
from disp_llm.models.rounding import GROUP, best_scales
from disp_llm.models.windows import fitting

SEQUENCES, LENGTH = 64, 512
"""Windows for calibration, and tokens of each."""

INT4: Scheme = {
    "targets": ["Linear"],
    "weights": {"num_bits": 4, "strategy": "group", "group_size": GROUP},
    "format": "pack-quantized",
}


def check(folder: Path) -> None:
    """Refuses mixtures of experts, quantised models, and layers that cannot be stored in 4 bits."""
    layers_of(folder, "int4")


def write(job: Job) -> None:
    """Rounds the weights, calibrated on the job's text if it has one."""
    layers, told, rounded = layers_of(job.folder, "int4"), "4 bits, a scale for 32 inputs", {}
    if job.corpus or job.text.learns_from_text:
        rounded, on = _calibrated(job, layers.stored)
        told += f", calibrated on {on} (GPTQ)"

    def calibrated(name: str, weight: Tensor) -> Rounded:
        made, scales = rounded[name]
        return made.float().cpu(), scales.cpu()

    write_quantised(job, layers, INT4, calibrated if rounded else to_nearest("int4"), told)


@torch.no_grad()
def _calibrated(job: Job, layers: list[str]) -> tuple[dict[str, Rounded], str]:
    """Returns the rounded layers by name, and a description of the text for calibration."""
    loaded = load(str(job.folder), PlaceConfig(job.device))
    target = PrunableModel.of(loaded)
    length = fitting(target.model, LENGTH)
    if job.corpus is not None:
        corpus = job.corpus
        length = corpus.nearest_length(length)
    else:
        sources = read_sources(job.text, tokens=SEQUENCES * LENGTH)
        names = job.text, loaded.tokenizer, loaded.bos_token_id, sources
        corpus = load_tokens(*names, rows=loaded.rows).corpus
        corpus.require_length(length, "text")
    windows = corpus.draw(SEQUENCES, length, random_stream("calibration", 0)).tokens
    stated = load_config(str(job.folder)).dtype
    dtype = stated if isinstance(stated, torch.dtype) else loaded.dtype
    name_of = {module: name for name, module in target.model.named_modules()}
    found = dict[str, Rounded]()

    def visit(index: int, block: nn.Module, moments: SecondMoments) -> None:
        for path, moment in moments.items():
            linear = linear_at(block, path)
            if (name := name_of[linear]) in layers:
                weight, scales = rounded_to(linear.weight.float(), moment, dtype)
                linear.weight.copy_(weight)
                found[name] = linear.weight, scales

    visit_with(windows, target, visit, progress=job.progress)
    return found, f"{SEQUENCES} windows of {length} tokens of {', '.join(corpus.names)}"


def rounded_to(
    weight: Float[Tensor, "R C"], moment: Float[Tensor, "C C"], dtype: torch.dtype
) -> Rounded:
    """Rounds a weight to the grid of int4, column after column. Columns with large inputs come
    first (GPTQ's `act_order`). Scales are chosen before, so groups still consist of neighbours.

    Args:
        moment: `Σ x·xᵀ` of the inputs.
        dtype: dtype in which scales are stored.
    """
    sizes = moment.diagonal()
    order = sizes.argsort(descending=True, stable=True)
    groups = weight.unflatten(-1, (-1, GROUP))
    scales = best_scales(groups, dtype, sizes.unflatten(-1, (-1, GROUP)))
    scale_of = scales.float().repeat_interleave(GROUP, 1).T[order]  # (C, R)

    def exchange(column: int, columns: Tensor) -> Tensor:
        number = (columns[column] / scale_of[column]).round().clamp(-8, 7)
        return number * scale_of[column]

    factor = inverse_factor(moment[order][:, order]).to(weight.dtype)
    made = compensated(weight[:, order], factor, exchange)
    return made[:, order.argsort()].contiguous(), scales
