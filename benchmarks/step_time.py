"""What mask learning costs over a bare forward and backward pass of the dense model.

Both take the same windows in the same dtype, in turn, in one process. The bare pass computes the
loss through `model(labels=...)` and differentiates towards the embeddings, so that every block is
passed in both directions and no weight gets a gradient: the least that any method that learns by
back-propagation through the frozen model must do. The other is a whole step of `learn`: projection,
masks, loss, backward, optimiser.

    python benchmarks/step_time.py [MODEL] [--rounds 30] [--length 512] [--dtype bfloat16]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from disp_llm.config.learning import TrainingConfig
from disp_llm.config.parts import MachineConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data.randomness import generator_of
from disp_llm.data.tokens import Corpus, random_windows
from disp_llm.masks.budget import Budget
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import start_process
from disp_llm.models.loading import Loaded, load
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job
from disp_llm.runs.provenance import hardware
from disp_llm.training.learning import learn
from disp_llm.training.problem import PruningProblem

WARM_UP = 3
"""Rounds whose times do not count: they warm caches up."""


def bare_pass(model, window: torch.Tensor) -> None:
    """One forward and backward pass of the dense model."""
    embedded = model.get_input_embeddings()(window[None]).requires_grad_(True)
    model(inputs_embeds=embedded, labels=window[None], use_cache=False).loss.backward()


def measured(loaded: Loaded, config: PruneConfig, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of bare passes and of learning steps, in turn."""
    dense = PrunableModel.of(loaded)
    budget = Budget(dense.layout)
    vocabulary = loaded.model.config.vocab_size
    stream = torch.randint(vocabulary, (100_000,), generator=generator_of(0))
    start = torch.randn(budget.layout.entries, generator=generator_of(1))
    steps = rounds + WARM_UP
    windows = random_windows(stream, steps, config.training.length, generator_of(2))
    bare, ours, began = [], [], 0.0

    def in_turn(stage: str, done: int, total: int, figures: dict) -> None:
        """Called after each step of ours: notes its time, then takes the bare pass's turn."""
        nonlocal began
        ours.append(time.perf_counter() - began)
        unmasked = [m for m in loaded.model.modules() if m._forward_hooks or m._forward_pre_hooks]
        hooks = [(m, m._forward_hooks, m._forward_pre_hooks) for m in unmasked]
        for module, _, _ in hooks:
            module._forward_hooks, module._forward_pre_hooks = {}, {}
        began = time.perf_counter()
        bare_pass(loaded.model, windows[done - 1])
        bare.append(time.perf_counter() - began)
        for module, forward, pre in hooks:
            module._forward_hooks, module._forward_pre_hooks = forward, pre
        began = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        job = Job(config, Run(Path(folder)), start_process(config.machine), in_turn)
        problem = PruningProblem(dense, Corpus((stream,)), budget, (0.5,), align=1, job=job)
        began = time.perf_counter()
        learn(problem, start, steps)
    return bare[WARM_UP:], ours[WARM_UP:]


def main() -> None:
    """Prints the times, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()

    machine = MachineConfig(dtype=arguments.dtype, device="cpu")
    loaded = load(arguments.model, machine)
    training = TrainingConfig(length=arguments.length, checkpoint_every=10**6)
    config = PruneConfig(arguments.model, training=training, machine=machine)
    bare, ours = measured(loaded, config, arguments.rounds)
    ratios = sorted(a / b for a, b in zip(ours, bare, strict=True))
    quarter = len(ratios) // 4
    print(
        json.dumps(
            {
                "model": arguments.model,
                "dtype": str(loaded.model.dtype).removeprefix("torch."),
                "tokens": arguments.length,
                "rounds": len(ratios),
                "learning_step_s": statistics.median(ours),
                "bare_pass_s": statistics.median(bare),
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [ratios[quarter], ratios[-1 - quarter]],
                "hardware": hardware(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
