"""Examples of single jobs, as `--examples` reads them, from data sets as they are published.

python experiments/job_examples.py JOBS FOLDER

FOLDER/  banking77-train.jsonl, banking77-test.jsonl (JOBS/banking77/train.csv and test.csv of
         github PolyAI-LDN/task-specific-datasets, CC BY 4.0: 77 intents of a bank's customers)
"""

import argparse
import csv
import json
from pathlib import Path


def intents(file: Path) -> list[dict[str, str]]:
    """Questions, each with its intent."""
    with file.open(encoding="utf-8", newline="") as rows:
        return [
            {
                "prompt": f"{row['text'].strip()}\nIntent:",
                "answer": f" {row['category']}",
            }
            for row in csv.DictReader(rows)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("jobs", type=Path)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        found = intents(asked.jobs / "banking77" / f"{part}.csv")
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        path = asked.folder / f"banking77-{part}.jsonl"
        path.write_text("".join(lines), encoding="utf-8")
        print(f"{path}: {len(found):,} examples")


if __name__ == "__main__":
    main()
