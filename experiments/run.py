"""Runs an experiment: every variant through `disp-llm`, results into one committed file.

An experiment is a small TOML file of differences: `common` flags, for every `[[variant]]` a name
and the flags that are its own; `texts`, files by name, on which the exported folders are also to be
measured, and `tasks`, which they are to be run on zero-shot (or a suite of tasks), or `answers`,
examples whose prompts they are to answer, as they are and in the `bits` that a variant names;
`constants`, values that a variant tries in place of those of a method's module. `command` names
another command than `prune`, of all variants or of one: `recover`, or `compare`, whose result is
what `compare.json` holds. A variant that has finished is not run again unless its flags have
changed; one that was interrupted goes on; one that begins with the model of another
($RUNS/NAME/VARIANT) waits for it. Only the results are committed, the run folders are not. Each
states its command, and the commit of disp-llm, seed, versions, hardware and date of the run that it
comes from; so does every size or row in it.

    python experiments/run.py seeds [--only NAME ...] [--runs runs/experiments] [--at-once 2]
"""

import argparse
import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path

from committed import as_committed

from disp_lab.reporting.tables import without_paths

HERE = Path(__file__).parent
KEPT = (
    *("seed", "date", "commit", "resumed", "versions", "hardware", "source", "original", "before"),
    *("tokens_seen", "tokens_before", "seconds", "peak_memory_bytes"),
    *("keep_by_penalty", "steps", "fit"),
)
"""What is committed of `result.json`, besides the models."""


def command_of(variant: dict, experiment: dict) -> str:
    """As it is written in the results, with names of variables in place of folders. Flags of a
    variant take the place of common ones."""
    own = variant["flags"]
    name = variant.get("command", experiment.get("command", "prune"))
    common = re.split(r" (?=--)", experiment["common"])
    parts = [part for part in common if part.split()[0] not in own.split()]
    tried = [f"# {name} = {value}" for name, value in variant.get("constants", {}).items()]
    return " ".join(["disp-llm", name, *parts, own, *tried]).strip()


def command_now(recorded: str) -> str:
    """A recorded command with today's names of what it asks for: sizes lay in `model` and
    `model-0.5`, and that recovery trains all weights was a setting."""
    recorded = recorded.replace(" --target ", " --fit ")
    recorded = re.sub(r"--eval-text (\S+) --how full", r"--eval-text=\1", recorded)
    place = r"(RUNS/(?:general|headline)/[^ '\"]*)/model"
    return re.sub(place + r"(?![-\w])", r"\1/keep-0.8", re.sub(place + "-", r"\1/keep-", recorded))


FORMER = (" --recipe disp", " --learning-rate 5e-4")
"""Former defaults, of `prune` and of `recover`."""


def is_of(recorded: str, variant: dict, experiment: dict) -> bool:
    """Whether a recorded command is that of the variant. It does not name what was the default when
    it ran."""
    stated = command_of(variant, experiment)
    return command_now(recorded) in (stated, *(stated.replace(former, "") for former in FORMER))


def is_whole(result: dict, variant: dict, experiment: dict) -> bool:
    """Whether it is of these flags, with all that the experiment wants to know of its models."""
    if not is_of(result.get("command", ""), variant, experiment):
        return False
    if result.get("rows"):  # of a comparison, which leaves out rows that failed and can be had
        made = [row for row in result["rows"] if row.get("error") is None or row.get("weights")]
        return all(row.get("error") is None for row in made)
    texts, wanted = experiment.get("texts", {}), {"tasks", "answers"} & set(experiment)
    return all(
        texts.keys() <= model.get("texts", {}).keys() and wanted <= model.keys()
        for model in result["models"]
    )


def run_variant(variant: dict, experiment: dict, folder: Path) -> dict:
    """The variant's result, from its run folder if it has finished there."""
    stated = command_of(variant, experiment)
    arguments = [os.path.expandvars(word) for word in shlex.split(stated, comments=True)[1:]]
    begun = any((folder / name).exists() for name in ("config.toml", "compare.json"))
    resume = ["--resume"] if (folder / "config.toml").exists() else []  # `compare` always does
    note = folder.with_name(f"{folder.name}.command")  # beside the folder, which must be empty
    if begun and (not note.exists() or note.read_text() != stated):
        return {"name": variant["name"], "error": f"run folder {folder.name} has other flags"}
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(stated)
    program = ["-m", "disp_llm"]
    if "constants" in variant:
        program = [str(HERE / "with_constants.py"), json.dumps(variant["constants"])]
    done = subprocess.run(
        [sys.executable, *program, *arguments, "--output-dir", str(folder), "--json", *resume],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 130:
        sys.exit(130)
    if not done.stdout.strip():
        return {"name": variant["name"], "error": f"ended with code {done.returncode}"}
    found = as_committed(json.loads(done.stdout))
    if "error" in found:
        return {"name": variant["name"], "error": found["error"]}
    if "rows" in found:
        told = of_comparison(found, stated)
        return {"name": variant["name"], "command": stated} | told
    kept = {"command": stated} | {key: found[key] for key in KEPT if key in found}
    if "resumed" in kept:
        kept["resumed"] = [stated_by(stated, attempt) for attempt in kept["resumed"]]
    recovered = "before" in found
    made = [found["model"]] if recovered else found["models"]
    texts, tasks = experiment.get("texts", {}), experiment.get("tasks", "")
    models = [one | measure(one["folder"], texts, tasks) for one in made]
    if "answers" in experiment:
        models = [one | {"answers": answered(one, variant, experiment)} for one in models]
    for model in models:
        for place in {"folder", "converted"} & model.keys():  # of the machine that it ran on
            del model[place]
        if "provenance" in model:
            model["provenance"] = stated_by(stated, model["provenance"])
    kept["before" if recovered else "original"] |= measure(found["source"]["model"], texts, tasks)
    kept["source"] = named_source(found["source"])
    return {"name": variant["name"], **kept, "models": models}


def stated_by(command: str, provenance: dict) -> dict:
    """Where a row comes from, with the command as it is written in the results."""
    return provenance | {"command": command}


def of_comparison(found: dict, command: str) -> dict:
    """What is committed of `compare.json`: all but the places of this machine."""
    asked = {key: found["asked"][key] for key in ("keep", "steps", "length", "batch", "align")}
    asked["model"] = _named(found["asked"]["model"])
    rows = [
        row | {"error": (error := row.get("error")) and without_paths(error)}
        for row in found["rows"]
    ]
    for told in (original := dict(found["original"]), *rows):
        if "provenance" in told:
            told["provenance"] = stated_by(command, told["provenance"])
    source = named_source(found["source"])
    return found | {"asked": asked, "rows": rows, "original": original, "source": source}


def named_source(source: dict) -> dict:
    """The same with names of files in place of where this machine has them."""
    keys = ("model", "text", "eval_text")
    return source | {key: ", ".join(_named(p) for p in source[key].split(", ")) for key in keys}


def _named(source: str) -> str:
    """A folder by its last two parts, a file by its last; a name of the hub as it is."""
    path = Path(source)
    if path.is_dir():
        return "/".join(path.parts[-2:])
    return path.name if path.is_file() else source


def measure(model: str, texts: dict[str, str], tasks: str) -> dict:
    """What the experiment wants to know of a model beside its perplexity on the evaluation text:
    perplexity on other texts, zero-shot accuracies and their average."""
    measured: dict = {}
    for name, file in texts.items():
        found = evaluate(model, f"--text {file}")
        figures = ("perplexity", "perplexity_stderr", "tokens", "window_losses", "window_tokens")
        measured.setdefault("texts", {})[name] = {
            key: found[key] for key in figures if key in found
        }
    if tasks:
        kind = "suite" if tasks.endswith(".toml") else "tasks"
        found = evaluate(model, f"--{kind} {tasks}")
        measured["tasks"] = found["tasks"]
        if "average" in found:
            measured["tasks"] |= {"average": found["average"]}
    return measured


def answered(model: dict, variant: dict, experiment: dict) -> dict:
    """What the answers of a model score, as it is and in bits that are named, with its bytes."""
    asked = f"--examples {experiment['answers']}"
    places = {"as-is": (Path(model["folder"]), model["bytes"])}
    for bits in variant.get("bits", ()):
        place = Path(f"{model['folder']}-{bits}")
        if not place.exists():
            run = [sys.executable, "-m", "disp_llm", "convert", model["folder"], "--to", bits]
            run += ["--output-dir", str(place), "--embeddings", "--quiet"]
            subprocess.run(run, stdout=subprocess.DEVNULL, check=True)
        places[bits] = place, sum(path.stat().st_size for path in place.glob("*.safetensors"))
    return {
        bits: {"bytes": size} | evaluate(str(place), asked)["answers"]
        for bits, (place, size) in places.items()
    }


@cache
def evaluate(model: str, flags: str) -> dict:
    """What `disp-llm eval` prints."""
    given = [os.path.expandvars(flag) for flag in shlex.split(flags)]
    command = [sys.executable, "-m", "disp_llm", "eval", model, *given, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def read_rows(path: Path) -> dict[str, dict]:
    """The rows of a results file by name."""
    return {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}


def write_row(made: dict, order: list[str], path: Path) -> None:
    """Writes a row beside those that other threads and processes have written meanwhile."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        rows = read_rows(path) | {made["name"]: made}
        written = path.with_suffix(".part")
        written.write_text(json.dumps([rows[n] for n in order if n in rows], indent=1) + "\n")
        written.replace(path)
    finally:
        os.close(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="an experiments/NAME.toml")
    parser.add_argument("--only", nargs="*", default=[], help="names of variants")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where results go")
    shared = "variants side by side: more tokens a second, but no times"
    parser.add_argument("--at-once", type=int, default=1, help=shared)
    arguments = parser.parse_args()
    if arguments.at_once > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // arguments.at_once)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("RUNS", str(arguments.runs.resolve()))
    experiment = tomllib.loads((HERE / f"{arguments.name}.toml").read_text())
    path = arguments.results / f"{arguments.name}.json"
    results = read_rows(path)
    waiting: dict[str, Future] = {}

    def run(variant: dict) -> None:
        name = variant["name"]
        for other, made in list(waiting.items()):  # whose models it begins with
            if f"/{other.replace(' ', '-')}/" in variant["flags"]:
                made.result()
        print(f"{arguments.name}: {name}", file=sys.stderr)
        folder = arguments.runs / arguments.name / name.replace(" ", "-")
        made = run_variant(variant, experiment, folder)
        if "error" in made and "command" in results.get(name, {}):
            print(f"{name} stays as it was: {made['error']}", file=sys.stderr)
            return
        write_row(made, [v["name"] for v in experiment["variant"]], path)

    asked = [
        variant for variant in experiment["variant"]
        if not arguments.only or variant["name"] in arguments.only
    ]  # fmt: skip
    todo = [v for v in asked if not is_whole(results.get(v["name"], {}), v, experiment)]
    side_by_side = ThreadPoolExecutor(arguments.at_once)
    try:
        for variant in todo:
            waiting[variant["name"]] = side_by_side.submit(run, variant)
        for made in as_completed(waiting.values()):
            made.result()
    finally:  # after Ctrl-C, what waits does not begin
        side_by_side.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main()
