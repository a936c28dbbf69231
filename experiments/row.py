"""Makes a row of the README's table again, from an empty folder: its runs, then the test suite.

    python experiments/row.py "default" [--runs runs/row] [--at-once 2]

It prints the general ratio of every size beside the one that is committed.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from committed import read_committed
from comparison_rows import HERE, page_settings


def short_name(told: dict) -> str:
    """`default` of `**disp-llm**, default`."""
    return told["name"].partition(", ")[2].replace("`", "") or told["name"]


def main() -> None:
    rows = {short_name(told): told for told in page_settings()["general"]["row"]}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=rows)
    parser.add_argument("--runs", type=Path, default=Path("runs/row"))
    parser.add_argument("--at-once", default="1")
    asked = parser.parse_args()
    results = asked.runs / "results"
    results.mkdir(parents=True, exist_ok=True)
    os.environ["RUNS"] = str(asked.runs.resolve())
    places = ["--runs", str(asked.runs), "--results", str(results)]
    told = rows[asked.name]
    for part in [told["begun"]] * ("begun" in told) + [told]:
        named = part["variant"] if isinstance(part["variant"], list) else [part["variant"]]
        words = [part["experiment"], "--only", *named, "--at-once", asked.at_once, *places]
        subprocess.run([sys.executable, HERE / "run.py", *words], check=True)
    subprocess.run([sys.executable, HERE / "final.py", *places], check=True)
    committed = {
        (row["experiment"], row["variant"], row["keep"]): row["general_ratio"]
        for row in read_committed(HERE / "results" / "test.json")["models"]
    }
    for row in read_committed(results / "test.json")["models"]:
        known = committed.get((row["experiment"], row["variant"], row["keep"]))
        beside = "none is committed" if known is None else f"committed ×{known:.3f}"
        print(f"{row['variant']}, keep {row['keep']:g}: ×{row['general_ratio']:.3f}, {beside}")


if __name__ == "__main__":
    main()
