"""Runs an experiment: every variant through `disp-llm`, results into one committed file.

An experiment is a small TOML file of differences: `common` flags, for every `[[variant]]` a name
and the flags that are its own; `texts`, files by name, on which the exported folders are also to
be measured, and `tasks`, which they are to be run on zero-shot. A variant that has finished is not
run again; one that was interrupted goes on. Only the results are committed, the run folders are
not.

    python experiments/run.py estimators [--only NAME ...] [--runs runs/experiments]
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
DENSE = "smollm2-135m"
KEPT = ("command", "seed", "versions", "hardware", "source", "dense", "before", "tokens_seen",
        "seconds", "peak_memory_bytes", "keep_by_penalty", "curve")  # fmt: skip


def run_variant(variant: dict, experiment: dict, folder: Path) -> dict:
    """The variant's result, from its run folder if it has finished there."""
    stated = shlex.split(f"{experiment['common']} {variant['flags']}")
    flags = [os.path.expandvars(flag) for flag in stated]
    resume = ["--resume"] if (folder / "config.toml").exists() else []
    name = experiment.get("command", "prune")
    command = [sys.executable, "-m", "disp_llm", name, *flags]
    done = subprocess.run(
        [*command, "--output-dir", str(folder), "--json", *resume],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 130:
        sys.exit(130)
    found = json.loads(done.stdout)
    if "error" in found:
        return {"name": variant["name"], "error": found["error"]}
    hidden = ("folder",)  # a path of the machine that it ran on
    made = found["models"] if name == "prune" else [found["model"]]
    models = [{k: v for k, v in model.items() if k not in hidden} for model in made]
    kept = {key: found[key] for key in KEPT if key in found}
    kept.setdefault("dense", found.get("teacher") or found.get("before"))
    kept["command"] = " ".join(["disp-llm", name, *stated])
    before = kept["source"]["model"]
    for key in ("model", "text", "eval_text"):  # names of files, not where this machine has them
        kept["source"][key] = ", ".join(_named(p) for p in found["source"][key].split(", "))
    for model, one in zip(models, made, strict=True):
        model.update(measure(one["folder"], experiment))
    if "before" in kept:
        kept["before"] |= measure(before, experiment)
    return {"name": variant["name"], **kept, "models": models}


def _named(source: str) -> str:
    """A folder by its last two parts, a file by its last; a name of the hub as it is."""
    path = Path(source)
    if path.is_dir():
        return "/".join(path.parts[-2:])
    return path.name if path.is_file() else source


def measure(model: str, experiment: dict) -> dict:
    """What the experiment wants to know of a model beside its perplexity on the evaluation text:
    perplexity on other texts, zero-shot accuracies and their average."""
    measured: dict = {}
    for name, file in experiment.get("texts", {}).items():
        found = evaluate(model, f"--text {file}")
        figures = ("perplexity", "perplexity_stderr", "tokens")
        measured.setdefault("texts", {})[name] = {key: found[key] for key in figures}
    if "tasks" in experiment:
        found = evaluate(model, f"--tasks {experiment['tasks']}")
        measured["tasks"] = found["tasks"] | {"average": found["average"]}
    return measured


@cache
def evaluate(model: str, flags: str) -> dict:
    """What `disp-llm eval` prints."""
    given = [os.path.expandvars(flag) for flag in shlex.split(flags)]
    command = [sys.executable, "-m", "disp_llm", "eval", model, *given, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="an experiments/NAME.toml")
    parser.add_argument("--only", nargs="*", default=[], help="names of variants")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    arguments = parser.parse_args()
    experiment = tomllib.loads((HERE / f"{arguments.name}.toml").read_text())
    path = HERE / "results" / f"{arguments.name}.json"
    results = {r["name"]: r for r in json.loads(path.read_text())} if path.exists() else {}
    before = next((r["dense"] for r in results.values() if "error" not in r), {})
    wanted = [key for key in ("texts", "tasks") if key in experiment]
    of_dense = {key: before[key] for key in wanted if key in before}
    if len(of_dense) < len(wanted):
        of_dense = measure(DENSE, experiment)
    for variant in experiment["variant"]:
        name = variant["name"]
        if arguments.only and name not in arguments.only:
            continue
        if "error" in results.get(name, {"error": "not run"}):
            print(f"{arguments.name}: {name}", file=sys.stderr)
            folder = arguments.runs / arguments.name / name.replace(" ", "-")
            results[name] = run_variant(variant, experiment, folder)
            if "error" not in results[name]:
                results[name]["dense"] |= of_dense
            order = [v["name"] for v in experiment["variant"] if v["name"] in results]
            path.write_text(json.dumps([results[n] for n in order], indent=1) + "\n")


if __name__ == "__main__":
    main()
