"""Half a model for one job: taggers of named entities, original and pruned, on WNUT-17.

Every model below is made by `examples/structured_prediction/ner.py`, in the folder RUNS/seed-SEED;
what lies there is not made again. F1 over exact spans and labels of the test set, with the counts
of every sentence, so that two models can be compared sentence by sentence.

    python benchmarks/specialists.py WNUT17 [--only NAME …] [--seed 0] [--general RUN]

WNUT17 is the folder of `wnut17train.conll`, `emerging.dev.conll` and `emerging.test.annotated`;
RUN a run of `disp-llm prune smollm2-135m --keep 0.5 …` on general text, for the rows that begin
with one. The results are `benchmarks/results/specialists.json`.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from linear_tagger import linear_tagger  # first, since it says where the example's files are
from ner import SCORERS, save, tagger_in
from plain_tagger import score_plain, train_plain

from disp_lab.baselines.depth import keep_blocks
from disp_llm.commands.convert import convert
from disp_llm.config.commands import ConvertConfig
from disp_llm.exporter.folders import weight_bytes
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of
from disp_llm.runs.files import read_json, write_json
from disp_llm.runs.provenance import provenance

HERE = Path(__file__).parent
SCRIPT = HERE.parent / "examples" / "structured_prediction" / "ner.py"
RESULTS = HERE / "results" / "specialists.json"

MADE = {
    "dense": "train smollm2-135m --epochs 1",
    "dense, two epochs": "train {dense} --epochs 1",
    "task": "prune {dense} --keep 0.7 0.5 0.3 --steps 100",
    "task 0.7": "train {task}/keep-0.7 --epochs 1",
    "task 0.5": "train {task}/keep-0.5 --epochs 1",
    "task 0.3": "train {task}/keep-0.3 --epochs 1",
    "task 0.5, int8": "int8 {task 0.5}",
    "one pass": "prune {dense} --keep 0.5 --recipe retrain --steps 149 --batch 4",
    "one pass 0.5": "copy {one pass}/keep-0.5",
    "general 0.5": "train {general} --epochs 2",
    "flap": "prune {dense} --keep 0.5 0.3 --method flap",
    "flap 0.5": "train {flap}/keep-0.5 --epochs 1",
    "flap 0.3": "train {flap}/keep-0.3 --epochs 1",
    "blocks": "halve {dense}",
    "blocks 0.5": "train {blocks} --epochs 1",
    "plain": "plain",
    "linear": "linear",
}
"""How the folder of each name is made; braces hold names of others."""

SCORED = [name for name in MADE if name not in ("task", "one pass", "flap", "blocks")]
"""Those whose F1 is measured."""


def main() -> None:
    """Makes and scores what was asked for and is not there, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", help="names of models; all that can be made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--general", default="", help="folder of a pruned model")
    parser.add_argument("--runs", type=Path, default=Path("runs/specialists"))
    arguments = parser.parse_args()
    runs = arguments.runs / f"seed-{arguments.seed}"
    runs.mkdir(parents=True, exist_ok=True)
    possible = [name for name in SCORED if arguments.general or "{general}" not in MADE[name]]
    for name in arguments.only or possible:
        if not file_of(runs, name).exists():
            found = scored(name, runs, arguments)
            made_by = provenance(arguments.seed, command_of(name, arguments))
            write_json(file_of(runs, name), found | made_by)
        collect(runs, name, arguments.seed)


def scored(name: str, runs: Path, arguments: argparse.Namespace) -> dict:
    """What the test of a model gave."""
    if name == "linear":
        found = linear_tagger(arguments.data)
        write_json(file_of(runs, name, ".made.json"), {"seconds": found.pop("training_s")})
        return found
    folder = made(name, runs, arguments)
    began = time.perf_counter()
    if name == "plain":
        found = score_plain(arguments.data, folder)
    else:
        test = arguments.data / "emerging.test.annotated"
        found = called("eval", str(folder), "--test", str(test))
        found["bytes"] = weight_bytes(folder) - (folder / SCORERS[0]).stat().st_size
    return found | {"seconds_in_all": time.perf_counter() - began}


def file_of(runs: Path, name: str, suffix: str = ".json") -> Path:
    """What the test of a model gave (.json), what its making did (.made.json), or its folder ("").
    A name may hold a dot, which is no suffix."""
    return runs / f"{name.replace(', ', '-').replace(' ', '-')}{suffix}"


def made(name: str, runs: Path, arguments: argparse.Namespace) -> Path:
    """The folder of a model, which is made if it is not there, after what it is made of."""
    folder, done = file_of(runs, name, ""), file_of(runs, name, ".made.json")
    if done.exists():
        return folder
    stated = MADE[name]
    if "{general}" in stated:
        stated = stated.replace("{general}", shlex.quote(arguments.general))
    for other in MADE:
        if f"{{{other}}}" in stated:
            stated = stated.replace(f"{{{other}}}", str(made(other, runs, arguments)))
    verb, *words = shlex.split(stated)
    if verb == "int8":
        found = in_int8(Path(words[0]), folder)
    elif verb == "copy":
        shutil.copytree(words[0], folder)
        run = Path(words[0]).parent
        found = read_json(run.with_name(f"{run.name}.made.json"), "delete it")
    elif verb == "halve":
        found = halve(Path(words[0]), folder)
    elif verb == "plain":
        found = train_plain(arguments.data, folder, epochs=1, seed=arguments.seed)
    else:
        files = ["--train", arguments.data / "wnut17train.conll", "--output", folder]
        if verb == "prune":
            files += ["--dev", arguments.data / "emerging.dev.conll"]
        found = called(verb, *words, *map(str, files), "--seed", str(arguments.seed))
    write_json(done, found)
    return folder


def in_int8(source: Path, folder: Path) -> dict:
    """A tagger whose model is quantised."""
    began = time.perf_counter()
    convert(ConvertConfig(source, "int8", folder))
    for name in SCORERS:
        shutil.copyfile(source / name, folder / name)
    return {"seconds": time.perf_counter() - began}


def halve(source: Path, folder: Path) -> dict:
    """Every second block of a tagger, the first among them."""
    tagger = tagger_in(source)
    target = PrunableModel(tagger.model, family_of(tagger.model.config))
    kept = list(range(0, len(target.blocks), 2))
    keep_blocks(target, kept)
    save(tagger, folder)
    return {"blocks": len(kept)}


def called(*words: str) -> dict:
    """What `ner.py` prints."""
    command = [sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def command_of(name: str, arguments: argparse.Namespace) -> str:
    """The line that makes a row."""
    asked = f"--only {shlex.quote(name)} --seed {arguments.seed}"
    if "{general}" in MADE[name]:
        asked += f" --general {Path(arguments.general).name}"
    return f"python benchmarks/specialists.py WNUT17 {asked}"


def collect(runs: Path, name: str, seed: int) -> None:
    """Puts what was measured into the committed results."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    row = {"name": name, "how": MADE[name]}
    row |= {"training_s": read_json(file_of(runs, name, ".made.json"), "delete it")["seconds"]}
    row |= read_json(file_of(runs, name), "delete it")
    row["counts"] = " ".join("/".join(map(str, one)) for one in row["counts"])  # a line in the file
    rows = [one for one in rows if (one["name"], one["seed"]) != (name, seed)]
    write_json(RESULTS, sorted([*rows, row], key=lambda one: (one["seed"], one["name"])))


if __name__ == "__main__":
    main()
