"""Measures the models of experiments that are final on suites that choose nothing.

    python experiments/final.py [--runs runs/experiments] [--suites test]

An experiment names its suites, `final = ["test"]`, a variant may name others, and the models lie
where run.py has put them. What was measured of the same weights is not measured again. The result
of a suite is experiments/results/SUITE.json: the originals, and a row for every model.
"""

import argparse
import json
import os
import sys
import tomllib
from pathlib import Path

from committed import read_committed
from run import HERE
from test_suite import measured_in, size_of

from disp_llm.cli.environment import prepare_libraries

MODEL = "smollm2-135m"
SUITES = ("test", "tasks")


def original_of(command: str) -> str:
    """What a command began with, or the original of what it began with."""
    return next((word for word in command.split() if word.endswith(".gguf")), MODEL)


def models(suite: str, runs: Path, folder_of_results: Path) -> list[tuple[dict, Path]]:
    """What identifies each model that a suite is to measure, its original, and its folder."""
    found = []
    for path in sorted(HERE.glob("*.toml")):
        results = folder_of_results / f"{path.stem}.json"
        experiment = tomllib.loads(path.read_text())
        suites = experiment.get("final", ())
        own = {one["name"]: one.get("final", suites) for one in experiment.get("variant", ())}
        for result in read_committed(results) if results.exists() else ():
            if suite not in own.get(result["name"], suites):
                continue
            folder = runs / path.stem / result["name"].replace(" ", "-")
            for made in result.get("models", []):
                keep = size_of(made)
                place = folder / ("model" if "before" in result else f"keep-{keep:g}")
                seed = made.get("provenance", result).get("seed", 0)
                named = {"experiment": path.stem, "variant": result["name"], "keep": keep}
                named |= {"seed": seed, "original": original_of(result.get("command", ""))}
                found.append((named, place))
    return found


def measure(suite: str, runs: Path, folder_of_results: Path) -> None:
    """Measures what is there, and writes after every model."""
    from disp_llm.config.parts import MachineConfig
    from disp_llm.config.texts import load_suite
    from disp_llm.evaluation.suites import Scoreboard, against
    from disp_llm.masks.prunable import PrunableModel
    from disp_llm.models.loading import load
    from disp_llm.runs.provenance import provenance
    from disp_llm.runs.results import as_json
    from disp_llm.runs.scores import Scores, kept_said, ratio_said
    from disp_llm.runs.sums import read_sums

    wanted = models(suite, runs, folder_of_results)
    if not wanted:
        return
    board = Scoreboard.of(load_suite(str(HERE / "suites" / f"{suite}.toml")))

    def scores_of(model: str) -> Scores:
        loaded = load(model, MachineConfig())
        return board.measure(PrunableModel.of(loaded), loaded.tokenizer)

    path, told = folder_of_results / f"{suite}.json", measured_in(folder_of_results, suite)
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
            originals[base] = scores_of(os.path.expandvars(base))
            told["originals"][base] = as_json(originals[base])
        scores = against(scores_of(str(place)), originals[base])
        print(f"{suite}, {place}: {ratio_said(scores) or kept_said(scores)}", file=sys.stderr)
        made = provenance(named["seed"], "python experiments/final.py")
        row = named | {"weights_sha256": weights} | as_json(scores) | {"provenance": made}
        rows.append(row)
        known[weights] = row
        told["models"] = [*told["models"], row]
        path.write_text(json.dumps(told, indent=1) + "\n")
    if absent:
        said = f"{len(absent)} of {len(wanted)} models are not here, the first in {absent[0]}"
        print(f"{suite}: {said}: rows that they have stay", file=sys.stderr)
    told["models"] = rows
    path.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    arguments = parser.parse_args()
    prepare_libraries()
    for suite in arguments.suites:
        measure(suite, arguments.runs, arguments.results)


if __name__ == "__main__":
    main()
