"""Times models in llama.cpp: writes them as GGUF files and runs its `llama-bench` on these."""

import itertools
import json
import math
import shutil
import subprocess
import weakref
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch
from transformers import PreTrainedModel

from disp_llm.config.engines import DEMANDS
from disp_llm.config.errors import InputError
from disp_llm.evaluation.latency import COLUMNS, masks_of_shape
from disp_llm.evaluation.timing import Pair, Stopwatch, Workload, in_turn
from disp_llm.exporter.cutting import compact_model
from disp_llm.exporter.folders import write_folder
from disp_llm.exporter.formats.gguf import write_file
from disp_llm.masks.prunable import PrunableModel
from disp_llm.runs.progress import Ticks, unwatched

PROGRAM = "llama-bench"

GENERATED = 16
"""Tokens that one run decodes; its time per token is their mean."""


class LlamaBench(Stopwatch):
    """Writes models as 16-bit GGUF files and times them on as many threads as torch uses. A process
    loads one file, warms up and runs the workload a few times. Each model gets two processes, in
    the order A B B A.

    Raises:
        InputError: `llama-bench` is not on the PATH or fails, or the batch is larger than 1.
    """

    program = "llama.cpp"
    sites = DEMANDS["llama.cpp"].sites

    def __init__(
        self, original: PrunableModel, tokenizer: Any, of_pruned: Any | None = None
    ) -> None:
        found = shutil.which(PROGRAM)
        if found is None:
            raise InputError(
                f"latency for llama.cpp is measured by {PROGRAM}, which is not on the PATH",
                field="budget",
                hint="install llama.cpp, or leave out `for_` to measure in transformers",
            )
        self._bench = Path(found).resolve()
        self._original, self._tokenizer = original, tokenizer
        self._of_pruned = of_pruned or tokenizer  # a pruned model may have fewer tokens
        self._place = Path(mkdtemp(prefix="disp-llm-"))
        weakref.finalize(self, shutil.rmtree, self._place, ignore_errors=True)
        self._whole: Path | None = None
        changed = self._bench.stat()
        self.version = f"{changed.st_size} {changed.st_mtime_ns}"

    def paired(
        self,
        first: PreTrainedModel,
        second: PreTrainedModel,
        workload: Workload,
        rounds: int,
        on_round: Ticks = unwatched,
    ) -> Pair:
        """Returns the seconds of both models; the first has to be the original."""
        if workload.batch > 1:
            raise InputError(
                f"{PROGRAM} times one sequence", field="workload_batch", hint="leave it out"
            )
        if self._whole is None:
            layout = self._original.layout
            whole = masks_of_shape(layout, (1.0,) * len(COLUMNS), align=1)
            self._whole = self._written(compact_model(self._original, whole), self._tokenizer)
        pruned = self._written(second, self._of_pruned)
        files, repeats = (self._whole, pruned), math.ceil(rounds / 2)
        runs = [partial(run_bench, self._bench, file, workload, repeats) for file in files]
        times = in_turn(runs, 2, on_round, warm_up=0)  # every process warms up
        pruned.unlink()
        return Pair(*map(list, map(itertools.chain.from_iterable, times)))

    def _written(self, model: PreTrainedModel, tokenizer: Any) -> Path:
        """Writes a compact model as a GGUF file and returns its path."""
        with TemporaryDirectory(dir=self._place) as folder:
            write_folder(model, tokenizer, Path(folder))
            file = Path(f"{folder}.gguf")
            write_file(Path(folder), file)
        return file


def run_bench(program: Path, file: Path, workload: Workload, repeats: int) -> list[float]:
    """Returns llama-bench's seconds of each repeat: for a prompt, or per token decoded after it."""
    decoded = GENERATED if workload.phase == "decode" else 0
    asked: dict[str, Any] = {
        "-m": file, "-o": "json", "-r": repeats, "-t": torch.get_num_threads(), "-n": decoded,
        "-p": 0 if decoded else workload.length, "-d": workload.length if decoded else 0,
    }  # fmt: skip
    arguments = [str(word) for pair in asked.items() for word in pair]
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(
            f"{PROGRAM} cannot run a model of this kind: {said}",
            field="budget",
            hint="leave out `for_` to measure in transformers",
        )
    (measured,) = json.loads(done.stdout)
    return [1e-9 * taken / (decoded or 1) for taken in measured["samples_ns"]]
