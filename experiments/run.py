"""Runs an experiment: every variant through `disp-llm prune`, results into one committed file.

An experiment is a small TOML file of differences: `common` flags, for every `[[variant]]` a name
and the flags that are its own, and `tasks` where the exported folders are also to be run
zero-shot. A variant that has finished is not run again; one that was interrupted goes on. Only the
results are committed, the run folders are not.

    python experiments/run.py estimators [--only NAME ...] [--runs runs/experiments]
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
KEPT = ("command", "seed", "versions", "hardware", "source", "dense", "tokens_seen", "seconds",
        "peak_memory_bytes", "keep_by_penalty")  # fmt: skip


def run_variant(variant: dict, common: str, tasks: str, folder: Path) -> dict:
    """The variant's result, from its run folder if it has finished there."""
    stated = shlex.split(f"{common} {variant['flags']}")
    flags = [os.path.expandvars(flag) for flag in stated]
    resume = ["--resume"] if (folder / "config.toml").exists() else []
    command = [sys.executable, "-m", "disp_llm", "prune", *flags]
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
    models = [{k: v for k, v in model.items() if k not in hidden} for model in found["models"]]
    kept = {key: found[key] for key in KEPT if key in found}
    kept["command"] = " ".join(["disp-llm", "prune", *stated])
    for text in ("text", "eval_text"):  # names of files, not where this machine has them
        kept["source"][text] = ", ".join(Path(p).name for p in found["source"][text].split(", "))
    if tasks:
        for model, made in zip(models, found["models"], strict=True):
            model["tasks"] = run_tasks(made["folder"], tasks)
    return {"name": variant["name"], **kept, "models": models}


def run_tasks(folder: str, tasks: str) -> dict:
    """Zero-shot accuracies of an exported folder, and their average."""
    command = [sys.executable, "-m", "disp_llm", "eval", folder, "--tasks", tasks, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    return found["tasks"] | {"average": found["average"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="an experiments/NAME.toml")
    parser.add_argument("--only", nargs="*", default=[], help="names of variants")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    arguments = parser.parse_args()
    experiment = tomllib.loads((HERE / f"{arguments.name}.toml").read_text())
    path = HERE / "results" / f"{arguments.name}.json"
    results = {r["name"]: r for r in json.loads(path.read_text())} if path.exists() else {}
    for variant in experiment["variant"]:
        name = variant["name"]
        if arguments.only and name not in arguments.only:
            continue
        if "error" in results.get(name, {"error": "not run"}):
            print(f"{arguments.name}: {name}", file=sys.stderr)
            folder = arguments.runs / arguments.name / name.replace(" ", "-")
            tasks = experiment.get("tasks", "")
            results[name] = run_variant(variant, experiment["common"], tasks, folder)
            order = [v["name"] for v in experiment["variant"] if v["name"] in results]
            path.write_text(json.dumps([results[n] for n in order], indent=1) + "\n")


if __name__ == "__main__":
    main()
