"""What hashing files and flushing them to disk costs a command, as a share of its time.

    python benchmarks/overhead.py prune smollm2-135m --keep 0.5 --steps 20 --output-dir runs/cost

Runs the command in this process and adds up the time inside the functions that hash and flush.
"""

import json
import sys
import time
from collections import defaultdict
from typing import Any

from disp_llm import models
from disp_llm.cli.main import main
from disp_llm.commands import session
from disp_llm.runs import files, folder, sums
from disp_llm.training import checkpoints

COUNTED = {
    "flushing": [(files, "_flush"), (files, "_flush_entry")],
    "hashing": [
        *((module, "sha256_of") for module in (session, models.files, sums)),
        *((folder, name) for name in ("sha256", "changed_files", "folder_problems")),
        *((module, "tensors_sha256") for module in (models.source, checkpoints)),
    ],
}
"""The functions, where they are called from."""


def counted(seconds: dict[str, float], kind: str, function: Any) -> Any:
    """The same function, which adds its time unless it is called by another that is counted."""

    def timed(*given: Any, **more: Any) -> Any:
        inside, seconds["inside"] = seconds["inside"], 1.0
        began = time.perf_counter()
        try:
            return function(*given, **more)
        finally:
            seconds["inside"] = inside
            if not inside:
                seconds[kind] += time.perf_counter() - began

    return timed


if __name__ == "__main__":
    seconds: dict[str, float] = defaultdict(float)
    for kind, functions in COUNTED.items():
        for module, name in functions:
            setattr(module, name, counted(seconds, kind, getattr(module, name)))
    sys.argv[0] = "disp-llm"
    began = time.perf_counter()
    try:
        main()
    finally:
        whole = time.perf_counter() - began
        found = {kind: round(seconds[kind], 2) for kind in COUNTED} | {"whole": round(whole, 1)}
        share = sum(seconds[kind] for kind in COUNTED) / whole
        print(json.dumps(found | {"share": round(share, 4)}), file=sys.stderr)
