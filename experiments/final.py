"""Measures the models of experiments that are final on the test suite, which chooses nothing.

    python experiments/final.py [--runs runs/experiments]

An experiment says `final = true`, and its models lie where run.py has put them. What was measured
of the same weights is not measured again. The result is experiments/results/test.json: the
originals, and a row for every model.
"""

import argparse
import json
import os
import sys
import tomllib
from pathlib import Path

from committed import read_committed
from run import HERE
from test_suite import FILE, measured_in, size_of

from disp_llm.cli.environment import prepare_libraries

MODEL = "smollm2-135m"
SUITE = HERE / "suites" / "test.toml"


def original_of(command: str) -> str:
    """What a command began with, or the original of what it began with."""
    return next((word for word in command.split() if word.endswith(".gguf")), MODEL)


def models(runs: Path, folder_of_results: Path) -> list[tuple[dict, Path]]:
    """What identifies each model, its original, and its folder."""
    found = []
    for path in sorted(HERE.glob("*.toml")):
        results = folder_of_results / f"{path.stem}.json"
        if not tomllib.loads(path.read_text()).get("final") or not results.exists():
            continue
        for result in read_committed(results):
            folder = runs / path.stem / result["name"].replace(" ", "-")
            for made in result.get("models", []):
                keep = size_of(made)
                place = folder / ("model" if "before" in result else f"keep-{keep:g}")
                seed = made.get("provenance", result).get("seed", 0)
                named = {"experiment": path.stem, "variant": result["name"], "keep": keep}
                named |= {"seed": seed, "original": original_of(result.get("command", ""))}
                found.append((named, place))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    wanted = models(arguments.runs, arguments.results)
    path, told = arguments.results / FILE, measured_in(arguments.results)
    prepare_libraries()

    from disp_llm.config.parts import MachineConfig
    from disp_llm.config.texts import load_suite
    from disp_llm.evaluation.suites import Scoreboard, against
    from disp_llm.masks.prunable import PrunableModel
    from disp_llm.models.loading import load
    from disp_llm.runs.provenance import provenance
    from disp_llm.runs.results import as_json
    from disp_llm.runs.scores import Scores
    from disp_llm.runs.sums import read_sums

    board = Scoreboard.of(load_suite(str(SUITE)))

    def measured(model: str) -> Scores:
        loaded = load(model, MachineConfig())
        return board.measure(PrunableModel.of(loaded), loaded.tokenizer)

    known = {row["weights_sha256"]: row for row in told["models"]}
    originals, rows, absent = {}, [], []
    for named, place in wanted:
        base = named.pop("original")
        if not place.is_dir():  # what was measured before stays
            rows += [row for row in told["models"] if named.items() <= row.items()]
            absent.append(place)
            continue
        sums = read_sums(place)
        weights = "".join(sums[name] for name in sums if name.endswith("safetensors"))
        if weights in known:
            rows.append(known[weights] | named)
            continue
        if base not in originals:
            originals[base] = measured(os.path.expandvars(base))
            told["originals"][base] = as_json(originals[base])
        scores = against(measured(str(place)), originals[base])
        print(f"{place}: ×{scores.general_ratio:.3f}", file=sys.stderr)
        made = provenance(named["seed"], "python experiments/final.py")
        row = named | {"weights_sha256": weights} | as_json(scores) | {"provenance": made}
        rows.append(row)
        known[weights] = row
        told["models"] = [*told["models"], row]
        path.write_text(json.dumps(told, indent=1) + "\n")
    if absent:
        said = f"{len(absent)} of {len(wanted)} models are not here, the first in {absent[0]}"
        print(f"{said}: rows that they have stay", file=sys.stderr)
    told["models"] = rows
    path.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
