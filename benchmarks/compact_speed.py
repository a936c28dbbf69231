"""How much of the counted speed-up a cut model reaches, on one that keeps the cores busy.

A Llama-shaped model with random weights (by default hidden 2,048, intermediate 5,632, 8 blocks, 32
heads, 8 KV heads) against itself at keep 0.48. Widths differ from site to site and from block to
block as in the masks that were learned for SmolLM2-135M at keep 0.5 (WIDTHS). Both models are timed
in turn in one process, in the same mode; the ratio is the measured speed-up over the counted one,
FLOPs for prefill, bytes for decode. Counted FLOPs and bytes over seconds are what the device was
seen to do.

    python benchmarks/compact_speed.py [--shape 8-blocks] [--rounds 15] [--align 32] [--compile]
        [--length 512] [--device cpu]
"""

import argparse
import json
import statistics
from typing import Any

import torch
from random_llama import SHAPES, llama_config
from transformers import AutoModelForCausalLM

from disp_llm.config.names import SITES
from disp_llm.evaluation.benchmark import side_by_side
from disp_llm.evaluation.timing import Workload
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import Layout, usual_chunk
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.models.architectures import family_of
from disp_llm.models.devices import resolve_device
from disp_llm.runs.provenance import hardware, versions

WIDTHS = {
    "attn_in": (
        0.53, 0.98, 0.99, 0.99, 0.96, 0.88, 0.81, 0.68, 0.71, 0.68,
        0.83, 0.91, 0.68, 0.77, 0.82, 0.74, 0.74, 0.82, 0.86, 0.83,
        0.92, 0.79, 0.77, 0.97, 0.89, 0.39, 0.61, 0.67, 0.63, 0.74,
    ),
    "attn_out": (
        0.97, 1.00, 0.96, 0.98, 0.94, 0.84, 0.80, 0.61, 0.73, 0.81,
        0.93, 0.93, 0.83, 0.87, 0.82, 0.85, 0.85, 0.81, 0.84, 0.90,
        0.82, 0.90, 0.85, 0.98, 0.90, 0.56, 0.61, 0.94, 0.72, 0.94,
    ),
    "mlp_in": (
        1.00, 0.99, 1.00, 1.00, 0.99, 0.99, 0.98, 0.97, 0.98, 0.96,
        0.92, 0.86, 0.81, 0.76, 0.77, 0.73, 0.76, 0.74, 0.81, 0.85,
        0.88, 0.72, 0.87, 0.85, 0.85, 0.86, 0.88, 0.90, 0.86, 1.00,
    ),
    "mlp_mid": (
        0.99, 0.89, 0.78, 0.77, 0.66, 0.60, 0.50, 0.44, 0.43, 0.41,
        0.35, 0.28, 0.27, 0.25, 0.25, 0.26, 0.22, 0.21, 0.24, 0.29,
        0.37, 0.30, 0.38, 0.44, 0.41, 0.33, 0.33, 0.36, 0.33, 0.43,
    ),
    "mlp_out": (
        1.00, 1.00, 1.00, 1.00, 0.99, 0.98, 0.99, 0.99, 0.99, 0.98,
        0.96, 0.93, 0.86, 0.77, 0.81, 0.82, 0.73, 0.67, 0.86, 0.87,
        0.97, 0.91, 0.97, 0.99, 0.99, 0.96, 0.96, 0.98, 0.96, 1.00,
    ),
}  # fmt: skip
"""Shares of each site's entries that the learned masks keep in each of the 30 blocks of SmolLM2."""


def masks_as_learned(layout: Layout, keep: float, align: int) -> Masks:
    """Random entries, in chunks in the residual stream, as many of each site as learning kept at
    that depth, cut to `keep`."""
    chunk = usual_chunk(layout, align)
    blocks = len(layout.blocks)
    generator = torch.Generator().manual_seed(0)
    scores = []
    for index, length in enumerate(layout.lengths):
        shares = WIDTHS[SITES[index % len(SITES)]]
        share = shares[round(index // len(SITES) * (len(shares) - 1) / (blocks - 1))]
        together = chunk if layout.in_stream[index] else 1
        drawn = torch.rand(length // together, generator=generator).repeat_interleave(together)
        scores.append(drawn - (1 - share))  # of a uniform sample, `share` lies above 0
    joined = torch.cat(scores)
    kept = project(joined, Budget(layout, chunk=chunk), keep, align).kept
    return Masks(layout, kept, Selection(joined))


def with_counted(found: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A comparison with what it reaches of the counted speed-up, and the rows behind it."""
    both = [row for row in rows if row["phase"] == found["phase"]]
    return found | {
        "of_counted": found["speedup"] / found["predicted_speedup"],
        "median_s": [row["median_s"] for row in both],
        "tflops_per_s": [row["flops"] / row["median_s"] / 1e12 for row in both],
        "gigabytes_per_s": [row["bytes_read"] / row["median_s"] / 1e9 for row in both],
    }


def main() -> None:
    """Prints both models' times, and how they compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="8-blocks", choices=list(SHAPES))
    parser.add_argument("--device", default="cpu", help="auto: a GPU, where there is one")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--align", type=int, default=32)
    parser.add_argument("--keep", type=float, default=0.48)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()

    config = llama_config(arguments.shape)
    torch.manual_seed(0)
    with resolve_device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    dense = PrunableModel(model, family_of(config))
    masks = masks_as_learned(dense.layout, arguments.keep, arguments.align)
    compact = PrunableModel(compact_model(dense, masks), dense.family)
    targets = [dense, compact]
    if arguments.compile:
        for target in targets:
            target.model.forward = torch.compile(target.model.forward, dynamic=True)
    workloads = [Workload("prefill", arguments.length, 1), Workload("decode", arguments.length, 1)]
    names = ["dense", "compact"]
    results, compared = side_by_side(targets, names, workloads, arguments.rounds)
    comparisons = [with_counted(found, results) for found in compared]
    print(
        json.dumps(
            {
                "shape": arguments.shape,
                "keep": arguments.keep,
                "align": arguments.align,
                "compiled": arguments.compile,
                "mean_widths": [
                    statistics.mean(compact.model.config.disp_llm["widths"][site]) for site in SITES
                ],
                "comparisons": comparisons,
                "hardware": hardware(),
                "versions": versions(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
