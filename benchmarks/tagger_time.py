"""Seconds a sentence of taggers that `specialists.py` has made, beside the original's.

    python benchmarks/tagger_time.py WNUT17 [--runs RUNS] [--seed 0] [--sentences 60] [--rounds 5]

All of them are timed in turn, round by round, on the same sentences of the test set; the fastest
round of each counts, since whatever else the machine does only makes times longer. The results are
`benchmarks/results/tagger_time.json`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from linear_tagger import read_conll  # first, since it says where the example's files are
from ner import scorers_in, tagger_in
from specialists import HERE, file_of

from disp_llm.evaluation.timing import in_turn
from disp_llm.runs.files import write_json
from disp_llm.runs.provenance import provenance

RESULTS = HERE / "results" / "tagger_time.json"

ORIGINAL = "dense, two epochs"
"""What the others are shares of."""

TIMED = (ORIGINAL, "task 0.7", "task 0.5", "task 0.3", "one pass 0.5", "flap 0.5", "task 0.5, int8")
"""Those that are timed, as far as they are there."""


def main() -> None:
    """Times what is there, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/specialists"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sentences", type=int, default=60, help="the first so many of the test")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    runs = arguments.runs / f"seed-{arguments.seed}"
    names = [name for name in TIMED if file_of(runs, name, ".made.json").exists()]
    labels = scorers_in(file_of(runs, ORIGINAL, "")).labels
    test = arguments.data / "emerging.test.annotated"
    sentences = read_conll(test, labels)[: arguments.sentences]

    def timed(name: str) -> Callable[[], float]:
        tagger = tagger_in(file_of(runs, name, ""))

        def run() -> float:
            began = time.perf_counter()
            for sentence in sentences:
                tagger.tag(sentence)
            return time.perf_counter() - began

        return run

    found = in_turn([timed(name) for name in names], arguments.rounds)
    rows = []
    for name, seconds in zip(names, map(min, found), strict=True):
        share = seconds / min(found[0])
        rows.append({"name": name, "seconds": seconds / len(sentences), "share": share})
        print(name, rows[-1], file=sys.stderr)
    asked = f"--seed {arguments.seed} --sentences {len(sentences)} --rounds {arguments.rounds}"
    command = f"python benchmarks/tagger_time.py WNUT17 {asked}"
    measured = {"sentences": len(sentences), "rounds": arguments.rounds, "rows": rows}
    write_json(RESULTS, measured | provenance(arguments.seed, command))


if __name__ == "__main__":
    main()
