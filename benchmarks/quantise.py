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
import copy
import json
import statistics
from importlib.metadata import version
from pathlib import Path

import torch
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm

from disp_llm.config.parts import MachineConfig, PerplexityConfig
from disp_llm.data.reading import read_given
from disp_llm.data.tokens import stream_of
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.evaluation.timing import Workload, in_turn, runner
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import load
from disp_llm.runs.provenance import hardware, versions

GROUP = 32
KINDS = {
    "bf16": None,
    "int8": Int8WeightOnlyConfig(set_inductor_config=False),
    "int4": PrototypeInt4WeightOnlyConfig(
        GROUP, Int4ChooseQParamsAlgorithm.HQQ, set_inductor_config=False
    ),
}


def bytes_of(model) -> int:
    """Of all weights as they are stored, tied ones once."""
    found = {}
    for parameter in model.parameters():
        parts = [parameter]
        if hasattr(parameter, "tensor_data_names"):  # a torchao tensor: integers and their scales
            names = parameter.tensor_data_names
            parts = [getattr(parameter, name) for name in names]
        found |= {(id(parameter), i): p.numel() * p.element_size() for i, p in enumerate(parts)}
    return sum(found.values())


def quantised(model, kind: str):
    """A copy whose block layers are quantised, and how many of them were left out."""
    made = copy.deepcopy(model)
    if KINDS[kind] is None:
        return made, 0
    blocks = [
        name
        for name, module in made.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not made.get_output_embeddings()
    ]
    quantize_(made, KINDS[kind], lambda module, name: name in blocks)
    plain = [name for name in blocks if type(made.get_submodule(name).weight.data) is torch.Tensor]
    return made, len(plain)


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
            model, left_out = quantised(loaded.model, kind)
            found = perplexity(PrunableModel(model, loaded.family), stream, PerplexityConfig())
            rows.append(
                {
                    "model": name,
                    "weights": kind,
                    "bytes": bytes_of(model),
                    "layers_left_out": left_out,
                    "perplexity": found.perplexity,
                    "perplexity_stderr": found.perplexity_stderr,
                }
            )
            models.append(model)
            print(json.dumps(rows[-1]), flush=True)
    workload = Workload("decode", 128, 1)
    for mode in ("eager", "compiled"):
        if mode == "compiled":
            for model in models:
                model.forward = torch.compile(model.forward, dynamic=True)
        times = in_turn([runner(model, workload) for model in models], arguments.rounds)
        for row, seconds in zip(rows, times, strict=True):
            ratios = [first / own for first, own in zip(times[0], seconds, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            row[mode] = {
                "decode_tokens_per_s": 1 / statistics.median(seconds),
                "speedup": middle,
                "speedup_quartiles": [low, high],
            }
    facts = {"hardware": hardware(), "versions": versions() | {"torchao": version("torchao")}}
    result = {"text": arguments.text.name, "rows": rows} | facts
    path = Path(__file__).parent / "results" / "quantise.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
