"""Makes a row of the README's table again, from an empty folder, measured as the row is.

    python experiments/row.py "default" [--runs runs/row] [--at-once 2]

It prints the general ratio of every size beside the one that is committed.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from comparison_rows import HERE, page_settings, variants_of


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
    told, results = rows[asked.name], asked.runs / "results"
    results.mkdir(parents=True, exist_ok=True)
    os.environ["RUNS"] = str(asked.runs.resolve())
    places = ["--runs", str(asked.runs), "--results", str(results)]
    words = [told["experiment"], "--only", *told["variant"], "--at-once", asked.at_once]
    subprocess.run([sys.executable, HERE / "run.py", *words, *places], check=True)
    if told.get("suite") == "test":
        subprocess.run([sys.executable, HERE / "final.py", "--suites", "test", *places], check=True)
    committed = ratios(variants_of(told))
    for (variant, keep), ratio in ratios(variants_of(told, results)).items():
        print(f"{variant}, keep {keep:g}: ×{ratio:.3f}, committed ×{committed[variant, keep]:.3f}")


def ratios(results: list[dict]) -> dict[tuple[str, float], float]:
    """The general ratio of every size of every variant."""
    return {
        (result["name"], round(model["keep"], 2)): model["general_ratio"]
        for result in results
        for model in result["models"]
    }


if __name__ == "__main__":
    main()
