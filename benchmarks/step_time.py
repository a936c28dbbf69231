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
from accelerate import Accelerator

from disp_llm.config.learning import LearnConfig
from disp_llm.config.parts import MachineConfig
from disp_llm.data.tokens import Corpus, random_windows
from disp_llm.masks.budget import Budget
from disp_llm.masks.layout import layout_of
from disp_llm.models.loading import load
from disp_llm.runs.provenance import hardware
from disp_llm.training.learning import learn
from disp_llm.training.loop import generator_of
from disp_llm.training.problem import PruningProblem


def bare_pass(model, window: torch.Tensor) -> None:
    embedded = model.get_input_embeddings()(window[None]).requires_grad_(True)
    model(inputs_embeds=embedded, labels=window[None], use_cache=False).loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()

    loaded = load(arguments.model, MachineConfig(dtype=arguments.dtype))
    budget = Budget(layout_of(loaded.model, loaded.family))
    vocabulary = loaded.model.config.vocab_size
    stream = torch.randint(vocabulary, (100_000,), generator=generator_of(0))
    problem = PruningProblem(
        loaded.model, loaded.family, Corpus((stream,)), budget, (0.5,), align=1, seed=0
    )
    start = torch.randn(budget.layout.entries, generator=generator_of(1))
    config = LearnConfig(
        steps=arguments.rounds + 3, length=arguments.length, checkpoint_every=10**6
    )
    windows = random_windows(stream, arguments.rounds + 3, arguments.length, generator_of(2))
    bare, ours, began = [], [], 0.0

    def in_turn(metrics: dict) -> None:
        """Called after each step of ours: notes its time, then takes the bare pass's turn."""
        nonlocal began
        ours.append(time.perf_counter() - began)
        unmasked = [m for m in loaded.model.modules() if m._forward_hooks or m._forward_pre_hooks]
        hooks = [(m, m._forward_hooks, m._forward_pre_hooks) for m in unmasked]
        for module, _, _ in hooks:
            module._forward_hooks, module._forward_pre_hooks = {}, {}
        began = time.perf_counter()
        bare_pass(loaded.model, windows[metrics["step"] - 1])
        bare.append(time.perf_counter() - began)
        for module, forward, pre in hooks:
            module._forward_hooks, module._forward_pre_hooks = forward, pre
        began = time.perf_counter()

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        learn(problem, start, config, Path(folder), Accelerator(cpu=True), in_turn)

    bare, ours = bare[3:], ours[3:]  # the first steps warm caches up
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
