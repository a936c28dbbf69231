"""Pruned, quantised, both: size, perplexity and speed of {dense, pruned} x {bf16, int8, int4}.

Weight-only, of the linear layers inside the blocks, by torchao: int8 with a scale a row, int4 in
groups of 32 inputs chosen by HQQ. A group must divide a layer's inputs, so the pruned model's
widths are multiples of 32 (`prune --align 32`). The embedding, which SmolLM2 also uses as its head,
stays in bfloat16. Speed is of decoding one token after 128 (batch 1), compiled and eager, every
model in turn; the ratio to the dense bfloat16 model is the median over rounds.

    disp-llm prune smollm2-135m --recipe domain --scale-rate 0 --keep 0.5 --align 32 --text …
    pip install torchao
    python benchmarks/quantise.py smollm2-135m run/model --text wiki.test.raw [--rounds 15]
"""

import argparse
import json
import statistics
from importlib.metadata import version
from pathlib import Path

import torch

from disp_llm.config.names import WEIGHT_KINDS, WeightKind
from disp_llm.config.parts import MachineConfig, PerplexityConfig
from disp_llm.data.reading import read_given
from disp_llm.data.tokens import stream_of
from disp_llm.evaluation.memory import stored_bytes
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.evaluation.timing import Pair, Workload, in_turn, runner
from disp_llm.export.quantising import quantised
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import load
from disp_llm.runs.provenance import provenance

KINDS: tuple[WeightKind | None, ...] = (None, *WEIGHT_KINDS)


def main() -> None:
    """Measures all six models and writes `results/quantise.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dense")
    parser.add_argument("pruned")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()

    machine = MachineConfig(dtype="bfloat16")
    rows, models = [], []
    for name, path in (("dense", arguments.dense), ("pruned", arguments.pruned)):
        loaded = load(path, machine)
        given = read_given((arguments.text,), "", "text", "test")
        stream = stream_of(given, loaded.tokenizer)
        for kind in KINDS:
            target, left_out = PrunableModel.of(loaded), 0
            if kind is not None:
                target, left_out = quantised(target, kind)
            found = perplexity(target, stream, PerplexityConfig())
            rows.append(
                {
                    "model": name,
                    "weights": kind or "bf16",
                    "bytes": stored_bytes(target.model),
                    "layers_left_out": left_out,
                    "perplexity": found.perplexity,
                    "perplexity_stderr": found.perplexity_stderr,
                    "window_losses": found.window_losses,
                }
            )
            models.append(target.model)
            print(json.dumps(rows[-1]), flush=True)
    workload = Workload("decode", 128, 1)
    for mode in ("eager", "compiled"):
        if mode == "compiled":
            # All of them run the same code, of which dynamo keeps eight translations unless told.
            torch._dynamo.config.recompile_limit = 8 * len(models)
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            for model in models:
                model.forward = torch.compile(model.forward, dynamic=True)
        times = in_turn([runner(model, workload) for model in models], arguments.rounds)
        for row, seconds in zip(rows, times, strict=True):
            low, middle, high = Pair(times[0], seconds).speedup
            row[mode] = {
                "decode_tokens_per_s": 1 / statistics.median(seconds),
                "speedup": middle,
                "speedup_quartiles": [low, high],
            }
    command = f"python benchmarks/quantise.py MODEL FOLDER --text {arguments.text.name}"
    facts = provenance(0, f"{command} --rounds {arguments.rounds}")
    facts["versions"]["torchao"] = version("torchao")
    result = {"text": arguments.text.name, "rows": rows, **facts}
    exported = json.loads((Path(arguments.pruned) / "card.json").read_text())["figures"]
    result["pruned"] = {
        name: exported[name] for name in ("keep", "scaled", "adapter_rank", "align")
    }
    path = Path(__file__).parent / "results" / "quantise.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
