"""What mask learning costs over a bare forward and backward pass of the dense model.

Both read as many windows in the same dtype, ours before the other in every round, in one process;
the blocks of both are compiled or not, and of ours the loss as well. The
bare pass computes the loss through `model(labels=...)` and differentiates towards the embeddings,
so that every block is passed in both directions and no weight gets a gradient: the least that any
method that learns by back-propagation through the frozen model must do. The other is a whole step
of `learn`: projection, masks, the original as teacher if asked for, loss, backward, optimiser.

    python benchmarks/step_time.py [MODEL] [--distill 0.5] [--compile]
"""

import argparse
import contextlib
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.parts import MachineConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data.randomness import generator_of
from disp_llm.data.windows import Corpus, random_windows
from disp_llm.masks.budget import Budget
from disp_llm.masks.layout import usual_chunk
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import start_process
from disp_llm.models.loading import load
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job
from disp_llm.runs.provenance import hardware
from disp_llm.training.blocks import training_blocks
from disp_llm.training.learning import learn
from disp_llm.training.problem import PruningProblem

ALIGN = 32
"""Widths are multiples of it, as on a CPU by default."""

WARM_UP = 3
"""Rounds whose times do not count: they compile, and warm caches up."""


def bare_pass(model: Any, windows: Tensor) -> None:
    """One forward and backward pass of the dense model over (batch, length) tokens."""
    embedded = model.get_input_embeddings()(windows).requires_grad_(True)
    model(inputs_embeds=embedded, labels=windows, use_cache=False).loss.backward()


def measured(
    config: PruneConfig, keeps: tuple[float, ...], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of bare passes and of learning steps, in turn, each with a model of its own."""
    dense, plain = (PrunableModel.of(load(config.model, config.machine)) for _ in range(2))
    plain.model.requires_grad_(False)
    training, layout = config.training, dense.layout
    chunk = usual_chunk(layout, ALIGN)
    budget = Budget(layout, least_cut=config.least_cut, chunk=chunk)
    stream = torch.randint(dense.model.config.vocab_size, (100_000,), generator=generator_of(0))
    start = 2 * torch.randn(layout.entries, generator=generator_of(1))
    start += math.sqrt(1 / chunk) * layout.in_stream[layout.site_of_entry]  # hardly cut, as learned
    steps = rounds + WARM_UP
    windows = random_windows(stream, steps * training.batch, training.length, generator_of(2))
    batches = windows.view(steps, training.batch, training.length)
    bare, ours, began = [], [], 0.0

    def in_turn(stage: str, done: int, total: int, figures: dict) -> None:
        """Called after each step of ours: notes its time, then takes the bare pass's turn."""
        nonlocal began
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        bare_pass(plain.model, batches[done - 1])
        bare.append(time.perf_counter() - began)
        began = time.perf_counter()

    with contextlib.ExitStack() as stack:
        stack.enter_context(training_blocks(plain, training, training.compile == "yes"))
        run = Run(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        job = Job(config, run, start_process(config.machine), in_turn)
        problem = PruningProblem(dense, Corpus((stream,)), budget, keeps, ALIGN, job)
        began = time.perf_counter()
        learn(problem, start, steps)
    return bare[WARM_UP:], ours[WARM_UP:]


def main() -> None:
    """Prints the times, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--length", type=int, default=TrainingConfig.length)
    parser.add_argument("--batch", type=int, default=TrainingConfig.batch)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.8])
    parser.add_argument("--distill", type=float, default=0.0)
    parser.add_argument("--adapter-rank", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--dtype", default="auto")
    asked = parser.parse_args()

    training = TrainingConfig(
        length=asked.length,
        batch=asked.batch,
        distill=asked.distill,
        compile="yes" if asked.compile else "no",
    )
    config = PruneConfig(
        asked.model,
        training=training,
        learn=LearnConfig(adapter_rank=asked.adapter_rank),
        machine=MachineConfig(dtype=asked.dtype, device="cpu"),
    )
    bare, ours = measured(config, tuple(asked.keep), asked.rounds)
    ratios = sorted(a / b for a, b in zip(ours, bare, strict=True))
    quarter = len(ratios) // 4
    figures = {
        "learning_step_s": statistics.median(ours),
        "bare_pass_s": statistics.median(bare),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[quarter], ratios[-1 - quarter]],
        "hardware": hardware(),
    }
    print(json.dumps(vars(asked) | figures, indent=2))


if __name__ == "__main__":
    main()
