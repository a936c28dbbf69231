"""The linear layers of the blocks in 4 bits, a scale for 32 inputs, stored as `int8` stores them.

Without text each number is rounded to the nearest, under the one of ten scales that loses least of
its group. With text, weights that are still to come make up for what those before them have lost
(GPTQ, arXiv 2210.17323), block after block, as the text runs through the rounded model.

B windows, T tokens of a window, R outputs, C inputs of a layer, K of its groups of 32 inputs.
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
"""Windows of a calibration, and tokens of each."""

INT4: Scheme = {
    "targets": ["Linear"],
    "weights": {"num_bits": 4, "strategy": "group", "group_size": GROUP},
    "format": "pack-quantized",
}


def check(folder: Path) -> None:
    """Refuses mixtures, what is quantised already, and layers that do not fit."""
    layers_of(folder, "int4")


def write(job: Job) -> None:
    """Rounds the weights, on its text if the job has one."""
    layers, told, rounded = layers_of(job.folder, "int4"), "4 bits, a scale for 32 inputs", {}
    if job.text.learns_from_text:
        rounded, on = _calibrated(job, layers.stored)
        told += f", calibrated on {on} (GPTQ)"

    def calibrated(name: str, weight: Tensor) -> Rounded:
        made, scales = rounded[name]
        return made.float().cpu(), scales.cpu()

    write_quantised(job, layers, INT4, calibrated if rounded else to_nearest("int4"), told)


@torch.no_grad()
def _calibrated(job: Job, layers: list[str]) -> tuple[dict[str, Rounded], str]:
    """The rounded layers by their names, and what they were calibrated on."""
    sources = read_sources(job.text, tokens=SEQUENCES * LENGTH)
    loaded = load(str(job.folder), PlaceConfig(job.device))
    target = PrunableModel.of(loaded)
    corpus = load_tokens(job.text, loaded.tokenizer, loaded.bos_token_id, sources).corpus
    length = fitting(target.model, LENGTH)
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
    text = ", ".join(source.text.name for source in sources.learning if source.text)
    return found, f"{SEQUENCES} windows of {length} tokens of {text}"


def rounded_to(
    weight: Float[Tensor, "R C"], moment: Float[Tensor, "C C"], dtype: torch.dtype
) -> Rounded:
    """A weight on the grid of int4, column after column. Columns of large inputs come first (GPTQ's
    `act_order`); scales are chosen beforehand, so that groups are of neighbours all the same.

    Args:
        moment: `Σ x·xᵀ` of the inputs.
        dtype: what scales are stored in.
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
