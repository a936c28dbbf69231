"""How well the costs behind `--budget latency` predict what compact models take.

The costs are measured as a run measures them (from the user's cache, if it has them), and then as
many models of random shapes as asked for are timed in turn with the original: random widths at
every site, KV heads and whole branches among them, between 30 and 95 % of the block parameters.

    python benchmarks/latency_model.py [smollm2-135m] [--workload prefill] [--shapes 20]
"""

import argparse
import json
import statistics

import torch

from disp_llm.config.names import BRANCHES, SITES
from disp_llm.config.parts import MachineConfig
from disp_llm.evaluation.latency import latency_costs, measured_time
from disp_llm.evaluation.timing import Workload
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import Layout, usual_chunk
from disp_llm.masks.prunable import PrunableModel, further_sites
from disp_llm.masks.selection import Masks, Selection
from disp_llm.models.loading import load
from disp_llm.reporting.terminal import say
from disp_llm.runs.provenance import hardware, versions


def random_masks(layout: Layout, align: int, seed: int) -> Masks:
    """Scores that differ from site to site as learned ones do, cut to a random number of
    parameters; a whole branch stays unless its own score is among the lowest."""
    noise = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(layout.lengths), generator=noise)[layout.site_of_entry] / 2
    scores += torch.randn(layout.entries, generator=noise)
    scores += 1.5 * layout.entries_of(*BRANCHES)
    keep = 0.3 + 0.65 * float(torch.rand((), generator=noise))
    budget = Budget(layout, sites=layout.sites, chunk=usual_chunk(layout, align))
    kept = project(scores, budget, keep, align).kept
    return Masks(layout, layout.without_dropped(kept), Selection(scores))


def main() -> None:
    """Prints predicted and measured shares of the original's time, and how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--workload", choices=["prefill", "decode"], default="prefill")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--shapes", type=int, default=20)
    parser.add_argument("--align", type=int, default=32)
    arguments = parser.parse_args()

    loaded = load(arguments.model, MachineConfig())
    dense = PrunableModel.of(loaded, (*SITES, *further_sites(loaded.family)))
    workload = Workload(arguments.workload, arguments.length, 1)
    costs = latency_costs(
        dense, [workload], arguments.align, usual_chunk(dense.layout, arguments.align),
        lambda done, total: say(f"timing compact models {done}/{total}"),
    )  # fmt: skip
    rows = []
    for seed in range(arguments.shapes):
        masks = random_masks(dense.layout, arguments.align, seed)
        measured, _ = measured_time(dense.model, compact_model(dense, masks), [workload])
        predicted = float(costs.cost(masks.counts) / costs.dense_cost)
        rows.append(
            {
                "keep": float(Budget(dense.layout).keep(masks.counts)),
                "dropped": masks.dropped,
                "predicted": predicted,
                "measured": measured,
                "off": predicted / measured - 1,
            }
        )
        say(f"{seed + 1}/{arguments.shapes}: predicted {predicted:.3f}, measured {measured:.3f}")
    off = [abs(row["off"]) for row in rows]
    found = {
        "workload": workload.name,
        "off_median": statistics.median(off),
        "off_largest": max(off),
        "within_5_percent": sum(one <= 0.05 for one in off),
        "rows": rows,
        "dtype": str(dense.dtype),
        "hardware": hardware(),
        "versions": versions(),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
