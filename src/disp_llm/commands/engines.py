"""The program that is to run the result (`for_`). Checks, before anything is learned, that it can,
and writes models in its format beside the folders that can be trained and exported further."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from disp_llm.commands.convert import convert
from disp_llm.config.engines import DEMANDS, Demands
from disp_llm.config.errors import InputError
from disp_llm.config.names import Format
from disp_llm.config.prune import PruneConfig
from disp_llm.evaluation.timing import IN_TRANSFORMERS, Stopwatch
from disp_llm.exporter.cutting import empty_compact_model
from disp_llm.exporter.folders import save, write_readers
from disp_llm.exporter.formats import writer_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Selection
from disp_llm.models.loading import Loaded
from disp_llm.runs.files import atomic
from disp_llm.runs.job import Job
from disp_llm.training.problem import PruningProblem


def require_engine(problem: PruningProblem, loaded: Loaded) -> None:
    """Refuses a model that the program cannot run even when pruned as it demands. Its format checks
    an empty folder with the widths of random masks, which cut every site."""
    demands = problem.job.config.demands
    if not demands.has_own_format:
        return
    noise = torch.Generator().manual_seed(0)
    scores = torch.rand(problem.budget.layout.entries, generator=noise)
    masks = problem.masks(Selection(scores), problem.keeps[0])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save(empty_compact_model(problem.dense, masks), folder, state_dict={})
        write_readers(loaded.tokenizer, problem.dense.processor, folder)
        require_readable(folder, demands)


def stopwatch_of(
    config: PruneConfig, original: PrunableModel, tokenizer: Any, of_pruned: Any | None = None
) -> Stopwatch:
    """Returns what times models: llama.cpp if `for_` names it and `llama-bench` is installed, else
    transformers. A latency budget for llama.cpp requires `llama-bench`.

    Args:
        of_pruned: the tokenizer of the pruned models, if it is not the original's.
    """
    if config.for_ == "llama.cpp":
        from disp_llm.evaluation.llama_bench import PROGRAM, LlamaBench

        if shutil.which(PROGRAM) or config.budget.kind == "latency":
            return LlamaBench(original, tokenizer, of_pruned)
    return IN_TRANSFORMERS


def require_readable(folder: Path, demands: Demands) -> None:
    """Refuses an exported folder that the program cannot run."""
    try:
        writer_of(demands.format).check(folder)
    except InputError as error:
        hint = "name another program, such as vllm"
        raise InputError(error.what, field="for_", hint=hint) from error


def formats_of(folder: Path) -> list[Format]:
    """Returns the formats of single programs that can hold an exported folder."""
    found: list[Format] = []
    for form in {demands.format: None for demands in DEMANDS.values() if demands.has_own_format}:
        try:
            writer_of(form).check(folder)
        except InputError:
            continue
        found.append(form)
    return found


def place_of(job: Job, folder: Path) -> Path | None:
    """Returns the path of the copy in the program's format; None if it reads the folder itself."""
    demands = job.config.demands
    return folder.with_name(f"{folder.name}-{demands.format}") if demands.has_own_format else None


def converted(job: Job, folder: Path) -> Path | None:
    """Writes an exported folder in the program's format, unless it is there, and returns its path;
    None if the program reads the folder itself."""
    form, place = job.config.demands.format, place_of(job, folder)
    if place is not None and not job.run.has(place):
        with atomic(place) as new:
            convert(folder, to=form, output_dir=new, progress=job.progress)
    return place
