"""Times of the structures that experiments/contest.toml sets side by side: a prompt of 512 tokens
and a token, each in turn with the original, in transformers as it is, through torch.compile, and in
llama.cpp where it can run them and its llama-bench is on the PATH.

    python benchmarks/structures.py RUNS/contest

Every figure is the original's time over that of the model, with its quartiles over the rounds.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from disp_lab.results import machine_name
from disp_llm.evaluation.llama_bench import PROGRAM, run_bench
from disp_llm.evaluation.timing import USUAL, Pair, in_turn
from disp_llm.runs.provenance import hardware, provenance

RESULTS = Path(__file__).parent / "results" / "structures.json"
MODEL = "smollm2-135m"
ROUNDS = 9
BENCH = shutil.which(PROGRAM)
Figure = list[float]
"""Times as fast as the original: the median, and the quartiles."""


def command(*arguments: str | Path) -> dict:
    """What a command of ours prints as JSON; empty where it refuses."""
    done = subprocess.run(
        [sys.executable, "-m", "disp_llm", *map(str, arguments), "--json", "--quiet"],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    return json.loads(done.stdout) if done.returncode == 0 else {}


def in_transformers(folder: Path, *flags: str) -> dict[str, Figure]:
    asked = ("--length", "512", "--context", "512", "--batch", "1", "--rounds", str(ROUNDS))
    found = command("bench", folder, "--against", MODEL, *asked, *flags)
    return {
        one["phase"]: [one["speedup"], *one["speedup_quartiles"]] for one in found["comparisons"]
    }


def in_llama_cpp(file: Path, original: Path) -> dict[str, Figure]:
    program, found = Path(BENCH or ""), {}
    for workload in USUAL:
        models = [partial(run_bench, program, model, workload, 1) for model in (original, file)]
        times = in_turn(models, ROUNDS, warm_up=0)  # llama-bench warms up
        found[workload.phase] = figure(*([took for (took,) in each] for each in times))
    return found


def figure(dense: list[float], pruned: list[float]) -> Figure:
    """From the seconds of both, round by round."""
    low, middle, high = Pair(dense, pruned).speedup
    return [middle, low, high]


def as_gguf(model: Path, folder: Path) -> Path | None:
    """Its file for llama.cpp; None where that cannot run it."""
    made = command("convert", model, "--to", "gguf", "--output-dir", folder)
    return folder / "model.gguf" if made else None


def whole(folder: Path) -> Path:
    """The original as an exported folder: a size that keeps all."""
    few = ("--calibration-sequences", "1", "--windows", "1", "--rounds", "0")
    sites = ("--sites", "mlp_mid", "heads", "--text", "speeches")
    asked = ("--method", "fisher", "--keep", "1", *sites, *few)
    command("prune", MODEL, *asked, "--output-dir", folder)
    return folder / "keep-1"


def rows_in(path: Path) -> list[dict]:
    """The rows that were measured before, on this machine: a table sets all of them side by
    side."""
    told = json.loads(path.read_text()) if path.exists() else {"rows": []}
    if told["rows"] and machine_name(told["hardware"]) != machine_name(hardware()):
        sys.exit(f"{path} is of {machine_name(told['hardware'])}: move it away")
    return told["rows"]


def write_rows(path: Path, rows: list[dict]) -> None:
    told = {"hardware": hardware(), "rounds": ROUNDS, "rows": rows}
    path.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--keep", nargs="*", default=["0.8", "0.65", "0.5"])
    asked = parser.parse_args()
    rows, line = rows_in(RESULTS), "python benchmarks/structures.py RUNS/contest"
    known = {(row["structure"], row["keep"], row["in"]) for row in rows}

    def note(structure: str, keep: str, way: str, measured) -> None:
        if (structure, float(keep), way) not in known:
            found = measured()
            print(structure, keep, way, found, file=sys.stderr)
            row = {"structure": structure, "keep": float(keep), "in": way} | found
            rows.append(row | {"provenance": provenance(0, line)})
            write_rows(RESULTS, rows)

    with tempfile.TemporaryDirectory() as place:
        original = as_gguf(whole(Path(place) / "run"), Path(place) / "file") if BENCH else None
        for run in sorted(asked.runs.glob("*,-seed-0")):
            structure = run.name.removesuffix(",-seed-0").replace("-", " ")
            for keep in asked.keep if not structure.startswith("scales alone") else ():
                folder = run / f"keep-{keep}"
                note(structure, keep, "eager", partial(in_transformers, folder))
                note(structure, keep, "compiled", partial(in_transformers, folder, "--compile"))
                file = original and as_gguf(folder, Path(place) / run.name / keep)
                if original and file:
                    note(structure, keep, "llama.cpp", partial(in_llama_cpp, file, original))


if __name__ == "__main__":
    main()
