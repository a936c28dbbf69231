"""Times of a pruned model beside the original in the programs that people run models in: llama.cpp,
in 16 bits and as it quantises, and vLLM; a prompt of 512 tokens and a token after it, in turn.

    python benchmarks/engines.py RUN [--keep 0.8 0.5] [--vllm PYTHON]

RUN is a run of `disp-llm prune smollm2-135m` whose sizes llama.cpp can run. Of a run with
`--for nemotron-nas`, vLLM reads that format, by its own class. llama-bench and llama-quantize are
those on the PATH; without them, or without a Python that has vLLM, their rows stay as they are, and
so do those of other machines. Every figure is the original's time over that
of the model, with its quartiles over the rounds, beside what is counted: block parameters for a
prompt, weights that are read for a token. The result is benchmarks/results/engines.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from structures import (
    BENCH,
    ROUNDS,
    Figure,
    as_gguf,
    command,
    figure,
    in_llama_cpp,
    whole,
)

from disp_lab.results import machine_name
from disp_llm.evaluation.timing import in_turn
from disp_llm.runs.files import read_json
from disp_llm.runs.provenance import hardware, provenance

RESULTS = Path(__file__).parent / "results" / "engines.json"
TYPES = ("Q8_0", "Q4_K_M")
"""As which llama-quantize stores weights."""
DECODED = 64
"""Tokens that vLLM writes for one figure."""
SERVER = f"""
import json, sys, time
from vllm import LLM, SamplingParams

model = LLM(
    sys.argv[1], dtype="bfloat16", max_model_len=1024, enable_prefix_caching=False,
    trust_remote_code=True,
)
prompt = {{"prompt_token_ids": list(range(1000, 1512))}}

def seconds(tokens):
    asked = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    began = time.perf_counter()
    model.generate(prompt, asked, use_tqdm=False)
    return time.perf_counter() - began

seconds({1 + DECODED})
for _ in sys.stdin:
    first = seconds(1)
    print("TIMES", json.dumps([first, (seconds({1 + DECODED}) - first) / {DECODED}]), flush=True)
"""
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def served(python: Path, folder: Path) -> tuple[subprocess.Popen, Callable[[], list[float]]]:
    """A process of vLLM that holds a model, and what asks it for its two times."""
    process = subprocess.Popen(
        [python, "-c", SERVER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | SETTINGS | {"OMP_NUM_THREADS": str(hardware()["threads"])},
    )  # fmt: skip

    def times() -> list[float]:
        assert process.stdin is not None
        assert process.stdout is not None
        print(file=process.stdin, flush=True)
        line = next(line for line in process.stdout if line.startswith("TIMES"))
        return json.loads(line.removeprefix("TIMES"))

    return process, times


def in_vllm(python: Path, original: Path, folder: Path) -> dict[str, Figure]:
    """How many times as fast a folder is; both models stay loaded."""
    models = [served(python, place) for place in (original, folder)]
    dense, pruned = in_turn([times for _, times in models], ROUNDS)
    for process, _ in models:
        process.stdin.close()
        process.wait(60)
    return {
        phase: figure([took[place] for took in dense], [took[place] for took in pruned])
        for place, phase in enumerate(("prefill", "decode"))
    }


def in_kinds(model: Path, folder: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """Its files for llama.cpp, one for each type of weights; "" = 16 bits."""
    file = as_gguf(model, folder)
    assert file is not None, f"llama.cpp cannot run {model}"
    made = {kind: folder / f"{kind}.gguf" if kind else file for kind in kinds}
    for kind in filter(None, kinds):
        quantise = ["llama-quantize", file, made[kind], kind]
        subprocess.run(quantise, capture_output=True, check=True)
    return made


def counted(size: dict, original: dict) -> dict[str, float]:
    """How many times fewer weights are multiplied for a prompt, and read for a token."""
    dense, blocks = original["block_parameters"], size["block_parameters"]
    head = original["parameters"] - dense  # tied to the embedding, and norms
    return {"prefill": dense / blocks, "decode": (dense + head) / (blocks + head)}


def measured(row: dict) -> tuple[str, float, str]:
    """What a row is of; a table sets the rows of one machine side by side."""
    return machine_name(row["provenance"]["hardware"]), row["keep"], row["in"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--keep", nargs="*", default=["0.8", "0.5"])
    parser.add_argument("--vllm", type=Path)
    asked = parser.parse_args()
    result = read_json(asked.run / "result.json", "name a run of prune")
    sizes = {one["size"]: one for one in result["models"]}
    told = read_json(RESULTS, "take it from the repository")

    def note(keep: str, way: str, found: dict[str, Figure]) -> None:
        print(keep, way, found, file=sys.stderr)
        row = {"keep": float(keep), "in": way, "counted": counted(sizes[keep], result["original"])}
        row |= found | {"provenance": provenance(0, "python benchmarks/engines.py RUN")}
        told["rows"] = [one for one in told["rows"] if measured(one) != measured(row)] + [row]
        RESULTS.write_text(json.dumps(told, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        original = whole(place / "original")
        if BENCH:
            kinds = ("", *(TYPES if shutil.which("llama-quantize") else ()))
            dense = in_kinds(original, place / "whole", kinds)
            for keep in asked.keep:
                pruned = in_kinds(asked.run / f"keep-{keep}", place / keep, kinds)
                for kind in kinds:
                    way = f"llama.cpp, {kind}" if kind else "llama.cpp"
                    note(keep, way, in_llama_cpp(pruned[kind], dense[kind]))
        if asked.vllm:
            command("convert", original, "--to", "plain", "--output-dir", place / "plain")
            asks = [asked.vllm, "-c", "import vllm; print(vllm.__version__)"]
            said = subprocess.run(asks, stdout=subprocess.PIPE, text=True, check=True)
            way = f"vLLM {said.stdout.split()[-1]}"
            for keep in asked.keep:
                name, folder = way, asked.run / f"keep-{keep}-nemotron-nas"
                if folder.is_dir():
                    name = f"{way}, nemotron-nas"
                else:
                    folder = asked.run / f"keep-{keep}"
                note(keep, name, in_vllm(asked.vllm, place / "plain", folder))


if __name__ == "__main__":
    main()
