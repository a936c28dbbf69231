"""Pruned, quantised, both: bytes, quality and speed of models in bfloat16, int8 and int4.

Weight-only, of the linear layers inside the blocks, by torchao: int8 with a scale a row, int4 in
groups of 32 inputs chosen by HQQ. A group must divide a layer's inputs, so a pruned model's widths
are multiples of 32 (`prune --align 32`). The embedding, which SmolLM2 also uses as its head, stays
in bfloat16. Quality is the general ratio over the texts of a suite, against the first model in
bfloat16. Speed is of decoding one token after 128 (batch 1), eager and compiled, every model in
turn; the ratio to the first model is the median over rounds. A model whose layers have the shapes
of an earlier one is not timed again.

    pip install torchao
    python benchmarks/quantise.py original=smollm2-135m "keep 0.5=run/keep-0.5" \\
        --suite experiments/suites/texts.toml [--rounds 15]
"""

import argparse
import dataclasses
import json
import statistics
from importlib.metadata import version
from pathlib import Path

import torch

from disp_lab.comparison.baseline_context import stored_bytes
from disp_lab.comparison.quantised import quantised
from disp_lab.names import WEIGHT_KINDS
from disp_llm.config.names import WeightKind
from disp_llm.config.parts import MachineConfig
from disp_llm.config.texts import load_suite
from disp_llm.evaluation.suites import Scoreboard, against
from disp_llm.evaluation.timing import Pair, Workload, in_turn, runner
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import load
from disp_llm.runs.provenance import provenance
from disp_llm.runs.scores import Scores

KINDS: tuple[WeightKind | None, ...] = (None, *WEIGHT_KINDS)
RESULTS = Path(__file__).parent / "results" / "quantise.json"


def main() -> None:
    """Measures every model in every kind of weights and writes `results/quantise.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL", help="the original first")
    parser.add_argument("--suite", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()

    board = Scoreboard.of(load_suite(arguments.suite))
    rows: list[dict] = []
    timed: list[tuple[dict, torch.nn.Module]] = []
    original, shapes = None, []
    for name, place in (model.split("=", 1) for model in arguments.models):
        loaded = load(place, MachineConfig(dtype="bfloat16"))
        dense = PrunableModel.of(loaded)
        mine = [tensor.shape for tensor in dense.model.parameters()]
        for kind in KINDS:
            target, left_out = (dense, 0) if kind is None else quantised(dense, kind)
            scores = board.measure(target, loaded.tokenizer)
            original = original or scores
            row = {"model": name, "weights": kind or "bf16", "layers_left_out": left_out}
            row |= figures(target, scores, original)
            rows.append(row)
            print(json.dumps({key: row[key] for key in row if key != "texts"}), flush=True)
            if mine not in shapes:
                timed.append((row, target.model))
        shapes.append(mine)
    time_all(timed, arguments.rounds)
    names = " ".join(f'"{model.split("=")[0]}=…"' for model in arguments.models)
    command = f"python benchmarks/quantise.py {names} --suite {Path(arguments.suite).name}"
    facts = provenance(0, f"{command} --rounds {arguments.rounds}")
    facts["versions"]["torchao"] = version("torchao")
    RESULTS.parent.mkdir(exist_ok=True)
    told = {"suite": board.suite.name, "rows": rows, **facts}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")


def figures(target: PrunableModel, scores: Scores, original: Scores) -> dict:
    """Bytes of a model and what it has lost."""
    lost = against(scores, original)
    return {
        "bytes": stored_bytes(target.model),
        "general_ratio": lost.general_ratio,
        "general_ratio_stderr": lost.general_ratio_stderr,
        "texts": {name: dataclasses.asdict(text) for name, text in lost.texts.items()},
    }


def time_all(timed: list[tuple[dict, torch.nn.Module]], rounds: int) -> None:
    """Adds to every row how fast its model is, eager and compiled, beside the first one."""
    workload = Workload("decode", 128, 1)
    rows, models = zip(*timed, strict=True)
    for mode in ("eager", "compiled"):
        if mode == "compiled":
            # All of them run the same code, of which dynamo keeps eight translations unless told.
            torch._dynamo.config.recompile_limit = 8 * len(models)
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            for model in models:
                model.forward = torch.compile(model.forward, dynamic=True)
        times = in_turn([runner(model, workload) for model in models], rounds)
        for row, seconds in zip(rows, times, strict=True):
            low, middle, high = Pair(times[0], seconds).speedup
            row[mode] = {
                "decode_tokens_per_s": 1 / statistics.median(seconds),
                "speedup": middle,
                "speedup_quartiles": [low, high],
            }


if __name__ == "__main__":
    main()
